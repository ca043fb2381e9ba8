package image

import (
	"context"
	"fmt"

	"github.com/sealdisk/sealdisk/image/dirty"
	"github.com/sealdisk/sealdisk/image/record"
)

// WriteAt writes all of p or fails; it never grows the disk (ErrTooLarge). What it
// wrote is read at once and durable with the next Flush. It waits while too much is
// not committed.
func (d *Disk) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := d.checkRange(off, int64(len(p))); err != nil {
		return 0, err
	}
	if err := d.s.throttle(ctx, d); err != nil {
		return 0, err
	}
	done := 0
	for done < len(p) {
		pos := off + int64(done)
		region, sector := uint64(pos/regionSize), int(pos%regionSize/sectorSize)
		skip := int(pos % sectorSize)
		n := min(len(p)-done, sectorSize-skip)
		var err error
		if skip == 0 && n == sectorSize {
			n = min(len(p)-done, (record.RegionSectors-sector)*sectorSize) &^ (sectorSize - 1)
			err = d.put(region, sector, p[done:done+n])
		} else {
			err = d.patch(ctx, region, sector, skip, p[done:done+n])
		}
		if err != nil {
			return done, err
		}
		done += n
	}
	d.touch()
	return done, nil
}

func (d *Disk) checkRange(off, n int64) error {
	if err := d.writable(); err != nil {
		return err
	}
	if off < 0 || n < 0 || off > d.Size()-n {
		return fmt.Errorf("%w: %d bytes at %d of %d", ErrTooLarge, n, off, d.Size())
	}
	return nil
}

// touch notes that the content changed.
func (d *Disk) touch() {
	now := d.s.Now().UnixNano()
	d.changed.Store(now)
	d.since.CompareAndSwap(0, now)
}

func (d *Disk) stripe(region uint64) int { return int(region % stripes) }

// change changes the active set, unless the disk has stopped to take writes.
func (d *Disk) change(fn func(active *dirty.Set)) error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.readOnly.Load() {
		return ErrReadOnly
	}
	fn(d.active)
	return nil
}

// put writes whole sectors of one region.
func (d *Disk) put(region uint64, sector int, data []byte) error {
	rmw := &d.rmw[d.stripe(region)]
	rmw.RLock()
	defer rmw.RUnlock()
	return d.change(func(active *dirty.Set) { active.Write(region, sector, data, false) })
}

// patch writes part of one sector. The rest of it may have to be read first; nobody
// else writes to the region meanwhile, and a commit that comes in between changes no content.
func (d *Disk) patch(ctx context.Context, region uint64, sector, off int, data []byte) error {
	rmw := &d.rmw[d.stripe(region)]
	rmw.Lock()
	defer rmw.Unlock()
	held := false
	err := d.change(func(active *dirty.Set) { held = active.Patch(region, sector, off, data) })
	if err != nil || held {
		return err
	}
	var page [sectorSize]byte
	err = d.look(func(w view) error {
		vec, err := w.read(ctx, region, sector, 1, nil)
		if err == nil {
			copy(page[:], vec[0])
		}
		return err
	})
	if err != nil {
		return err
	}
	copy(page[off:], data)
	return d.change(func(active *dirty.Set) { active.Write(region, sector, page[:], false) })
}

// Discard makes [off, off+n) read as zeros and gives the space of whole sectors back.
func (d *Disk) Discard(ctx context.Context, off, n int64) error {
	if err := d.checkRange(off, n); err != nil {
		return err
	}
	if err := d.s.throttle(ctx, d); err != nil {
		return err
	}
	end := off + n
	if end == d.Size() { // beyond the size there are zeros anyway
		end = (end + sectorSize - 1) / sectorSize * sectorSize
	}
	for off < end {
		region, sector := uint64(off/regionSize), int(off%regionSize/sectorSize)
		stop := min(end, int64(region+1)*regionSize)
		var err error
		if skip := off % sectorSize; skip != 0 || stop-off < sectorSize {
			stop = min(stop, off-skip+sectorSize)
			err = d.patch(ctx, region, sector, int(skip), zeros[:stop-off])
		} else {
			stop = stop / sectorSize * sectorSize
			err = d.zero(ctx, region, sector, int((stop-off)/sectorSize))
		}
		if err != nil {
			return err
		}
		off = stop
	}
	d.touch()
	return nil
}

// zero makes whole sectors of one region zero. A region without data stays out of
// the dirty set, so that a new file system may discard a large disk.
func (d *Disk) zero(ctx context.Context, region uint64, sector, count int) error {
	rmw := &d.rmw[d.stripe(region)]
	rmw.RLock()
	defer rmw.RUnlock()
	blank := false
	err := d.look(func(w view) error {
		leaf, err := w.v.tree.Leaf(ctx, region)
		blank = leaf == nil && !w.dirtyIn(region)
		return err
	})
	if err != nil || blank {
		return err
	}
	return d.change(func(active *dirty.Set) { active.Zero(region, sector, count, false) })
}

// Resize grows the disk; the new part reads as zeros. Durable with the next Flush.
// To shrink it is ErrShrink.
func (d *Disk) Resize(_ context.Context, size int64) error {
	if err := d.writable(); err != nil {
		return err
	}
	if size > record.MaxImageSize {
		return fmt.Errorf("image: %d bytes: at most %d", size, int64(record.MaxImageSize))
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch old := d.size.Load(); {
	case d.readOnly.Load():
		return ErrReadOnly
	case size < old:
		return fmt.Errorf("%w: %d bytes, now %d", ErrShrink, size, old)
	case size > old:
		d.size.Store(size)
		d.active.SetSize(size, false)
		d.touch()
	}
	return nil
}
