package image

import (
	"context"
	"slices"
	"time"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/image/record"
)

// Info describes the committed state of a disk.
type Info struct {
	ID              blockstore.ImageID
	Size, BlockSize int64 // bytes
	Allocated       int64 // bytes of sectors that hold data
	Stored          int64 // sealed bytes that the map reaches
	Compression     record.Compression
	Plan            record.PlanStats
	Commit          blockstore.CommitID
	Position        blockstore.Position
	Time            time.Time
	Epochs          int
	Recipients      []string
	Labels          map[string]string
	Snapshots       []record.Snapshot
	Parent          *record.Lineage
	Holder          [32]byte // public host key of who may write
	Dirty           int64    // bytes not committed yet
}

// Info describes the disk; it opens the root of the map alone.
func (d *Disk) Info(ctx context.Context) (Info, error) {
	d.mu.RLock()
	h, t := d.head, d.current.tree
	d.mu.RUnlock()
	c := h.commit
	sectors, err := t.Sectors(ctx)
	if err != nil {
		return Info{}, err
	}
	m, err := d.s.depmap(ctx, h)
	if err != nil {
		return Info{}, err
	}
	info := Info{
		ID: d.id, Size: c.Size, BlockSize: c.BlockSize, Allocated: int64(sectors) * sectorSize,
		Compression: c.Compression, Plan: c.Plan, Commit: h.id, Position: c.Position(), Time: c.Time,
		Epochs: len(h.keys.Epochs), Recipients: slices.Clone(h.keys.Recipients), Labels: c.Labels,
		Snapshots: slices.Clone(h.snapshots), Parent: m.Lineage, Holder: h.lease.Holder, Dirty: d.dirtyBytes(),
	}
	if c.Root != nil {
		info.Stored = int64(c.Root.Subtree)
	}
	return info, nil
}

// Objects counts the objects that the map reaches; it opens every leaf.
func (d *Disk) Objects(ctx context.Context) (int64, error) {
	w := d.view()
	defer w.leave()
	var n int64
	err := w.v.tree.Walk(ctx, func(_ uint8, _ uint64, _ blockstore.Ref, leaf *record.Leaf, _ *record.Inner, err error) error {
		n++
		if leaf != nil {
			n += int64(len(leaf.Objects))
		}
		return err
	})
	return n, err
}
