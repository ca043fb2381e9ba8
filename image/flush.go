package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/image/dirty"
	"github.com/sealdisk/sealdisk/image/record"
)

// Sizes of journals, in bytes.
const (
	journalSize  = 32 << 20  // preallocated
	journalLimit = 128 << 20 // a longer one asks for a commit
)

// journal is the one that flushes go to. Guarded by Disk.flushMu.
type journal struct {
	number  blockstore.JournalNumber // in the chain of journals
	file    *blockstore.Journal
	sealer  *record.JournalSealer
	end     int64      // where the next record goes
	durable int64      // up to here an fdatasync has returned
	last    record.Tag // of the last record in the file, or of the journal before
	buf     []byte
}

// flushGroup lets flushes that wait for the same fdatasync share it.
type flushGroup struct {
	mu   sync.Mutex
	next *flushBatch // those who come now; nil if nobody waits
}

type flushBatch struct {
	done chan struct{}
	err  error
}

// do runs fn under lock for all who came before it began.
func (g *flushGroup) do(lock sync.Locker, fn func() error) error {
	g.mu.Lock()
	b := g.next
	if b != nil {
		g.mu.Unlock()
		<-b.done
		return b.err
	}
	b = &flushBatch{done: make(chan struct{})}
	g.next = b
	g.mu.Unlock()

	lock.Lock()
	g.mu.Lock()
	g.next = nil
	g.mu.Unlock()
	b.err = fn()
	lock.Unlock()
	close(b.done)
	return b.err
}

// Flush returns nil when everything written before the call survives a power cut.
func (d *Disk) Flush(ctx context.Context) error {
	if d.closed.Load() {
		return ErrClosed
	}
	for d.readOnly.Load() {
		d.commitMu.Lock() // Yield may be making the commit that this flush waits for
		readOnly := d.readOnly.Load()
		d.commitMu.Unlock()
		if readOnly {
			return nil
		}
	}
	began := time.Now()
	defer func() { d.s.Took("flush", time.Since(began)) }()
	err := d.waiting.do(&d.flushMu, func() error {
		if d.closed.Load() {
			return ErrClosed
		}
		err := d.journalLocked()
		if errors.Is(err, blockstore.ErrNoSpace) {
			d.spilled++
			return nil
		}
		return err
	})
	if err != nil {
		return err
	}
	d.flushMu.Lock()
	owing := d.spilled > d.settled
	d.flushMu.Unlock()
	if owing {
		return d.Commit(ctx)
	}
	return nil
}

// journalLocked puts what no journal holds into the journal and makes it stable.
func (d *Disk) journalLocked() error {
	if err := d.failed.Load(); err != nil {
		return *err
	}
	d.mu.RLock()
	sets := []*dirty.Set{d.frozen, d.active}
	d.mu.RUnlock()
	for _, set := range sets { // in the order of the writes
		if set == nil {
			continue
		}
		pass := set.Pass()
		for over := false; !over; {
			var p packer
			over = pass.Drain(&p)
			if err := d.appendLocked(&p); err != nil {
				return err
			}
		}
	}
	j := d.journal
	if j == nil || j.durable == j.end {
		return nil
	}
	// The point of no return of a flush. What failed here once would succeed when
	// asked again, with the data gone: so it is not asked again.
	if err := j.file.Sync(); err != nil {
		return d.fail(err)
	}
	j.durable = j.end
	if j.end > journalLimit {
		d.kick()
	}
	return nil
}

// appendLocked seals one record and appends it.
func (d *Disk) appendLocked(p *packer) error {
	if len(p.ops) == 0 {
		return nil
	}
	if err := d.openJournalLocked(); err != nil {
		return err
	}
	j := d.journal
	b, err := j.sealer.Record(j.buf[:0], p.ops, [][]byte{p.data}, uint64(j.durable))
	if err != nil {
		return d.fail(err)
	}
	j.buf = b
	off, err := j.file.Append(b)
	if errors.Is(err, blockstore.ErrNoSpace) {
		// The sealer has counted a record that is not in the file, and must not go back: a
		// nonce would come twice. So the journal ends here.
		d.endJournalLocked()
		return err
	}
	if err == nil && off != j.end {
		err = fmt.Errorf("image: journal %v: record at %d, want %d", j.number, off, j.end)
	}
	if err != nil {
		return d.fail(err)
	}
	j.end += int64(len(b))
	j.last = j.sealer.Last()
	return nil
}

// openJournalLocked begins a new journal if none is open. The anchor knows of it
// before the first flush into it returns: from then on it must not be missing.
func (d *Disk) openJournalLocked() error {
	if d.journal != nil {
		return nil
	}
	d.mu.RLock()
	h := d.head
	d.mu.RUnlock()
	number := d.nextNumber
	sealer, err := record.NewJournalSealer(record.Seal{Suite: d.s.suite, Epoch: h.epoch}, record.JournalHeader{
		Image: d.id, Host: d.s.Key.Public(), Era: h.lease.Era, Term: h.lease.Term, Number: number, Base: h.id},
		d.s.Key.JournalKey, d.lastTag)
	if err != nil {
		return d.fail(err)
	}
	file, err := d.s.Store.CreateJournal(d.id, number, sealer.Header(), journalSize)
	if errors.Is(err, blockstore.ErrNoSpace) {
		return err
	}
	if err != nil {
		return d.fail(err)
	}
	mark := d.mark
	mark.Journal = number
	if err := d.s.Anchor.Save(d.id, mark); err != nil {
		return d.fail(errors.Join(err, file.Close()))
	}
	d.mark = mark
	d.nextNumber++
	d.journals = append(d.journals, number)
	d.journal = &journal{number: number, file: file, sealer: sealer,
		last: d.lastTag,
		end:  record.JournalHeaderSize, durable: record.JournalHeaderSize}
	return nil
}

// packer collects what one record holds; it is a dirty.Sink.
type packer struct {
	ops  []record.Op
	data []byte
}

const maxOps = 4096 // in one record

func (p *packer) full() bool { return len(p.ops) == maxOps }

func (p *packer) Resize(size int64) bool {
	p.ops = append(p.ops, record.Op{Kind: record.OpResize, A: uint64(size)})
	return true
}

func (p *packer) Zero(sector uint64, count int) bool {
	if p.full() {
		return false
	}
	p.ops = append(p.ops, record.Op{Kind: record.OpZero, A: sector, B: uint64(count)})
	return true
}

func (p *packer) Write(sector uint64, page *dirty.Page) bool {
	if p.full() || len(p.data) == record.MaxJournalData {
		return false
	}
	p.data = append(p.data, page[:]...)
	if n := len(p.ops); n > 0 && p.ops[n-1].Kind == record.OpWrite && p.ops[n-1].A+p.ops[n-1].B == sector {
		p.ops[n-1].B++
		return true
	}
	p.ops = append(p.ops, record.Op{Kind: record.OpWrite, A: sector, B: 1})
	return true
}

// replay puts what the journals above the head's mark hold into the active set, in
// order. docs/format.md §11, Open.
func (d *Disk) replay(h *head) error {
	numbers, err := d.s.Store.Journals(d.id)
	if err != nil {
		return err
	}
	absorbed := h.commit.Absorbed
	present := make(map[blockstore.JournalNumber]bool)
	for _, n := range numbers {
		present[n] = true
	}
	for n := absorbed + 1; n <= d.mark.Journal; n++ {
		if !present[n] {
			return fmt.Errorf("image %v: journal %v was there and is gone: %w", d.id, n, ErrRolledBack)
		}
	}
	d.nextNumber = max(absorbed, d.mark.Journal) + 1
	for _, n := range numbers {
		d.nextNumber = max(d.nextNumber, n+1)
		ours, err := d.replayOne(h, n, n > absorbed)
		switch {
		case err != nil && n > absorbed:
			return fmt.Errorf("image %v: journal %v: %w", d.id, n, err)
		case err != nil:
			d.s.Log.Warn("an absorbed journal is left in place", "image", d.id, "journal", n, "error", err)
		case ours:
			d.journals = append(d.journals, n)
		}
	}
	d.lastTag = record.Tag{} // all of them are absorbed by the next commit
	return nil
}

// replayOne replays one journal, or only looks whose it is; false if it is of another
// host or term and stays as it is.
func (d *Disk) replayOne(h *head, n blockstore.JournalNumber, all bool) (bool, error) {
	r, err := d.s.Store.OpenJournal(d.id, n)
	if err != nil {
		return false, err
	}
	defer r.Close()
	var b [record.JournalHeaderSize]byte
	if _, err := r.ReadAt(b[:], 0); err != nil {
		return false, &blockstore.CorruptError{What: "journal", Key: n.String(), Cause: err}
	}
	jh, err := record.ParseJournalHeader(b[:])
	if err != nil {
		return false, err
	}
	if jh.Image != d.id || jh.Number != n {
		return false, &blockstore.CorruptError{What: "journal", Key: n.String(), Cause: errors.New("of another place")}
	}
	if !all && jh.Host == d.s.Key.Public() && jh.Era <= h.lease.Era && jh.Term < h.lease.Term {
		return true, nil // absorbed in a term that is over: a crash kept it from being removed
	}
	if jh.Host != d.s.Key.Public() || jh.Era != h.lease.Era || jh.Term != h.lease.Term {
		if all && n <= d.mark.Journal { // we know that it was ours
			return false, &blockstore.CorruptError{What: "journal", Key: n.String(), Cause: errors.New("host or term differs")}
		}
		d.s.Log.Warn("journal of another holder is kept and not replayed", "image", d.id, "journal", n)
		return false, nil
	}
	scan, err := record.NewJournalScanner(h.keys, r, r.Size(), d.s.Key.JournalKey)
	if err != nil || !all {
		return err == nil, err
	}
	return true, d.replayRecords(scan)
}

func (d *Disk) replayRecords(scan *record.JournalScanner) error {
	for count := 0; ; count++ {
		ops, data, off, err := scan.Next()
		first, last, ok := scan.Chain()
		if ok && count == 0 && d.chained && first != d.lastTag {
			return &blockstore.CorruptError{What: "journal", Key: scan.Header().Number.String(),
				Cause: errors.New("the end of the journal before it is missing")}
		}
		if errors.Is(err, io.EOF) {
			// Without a record last is zero, and the next journal says so if that is right.
			d.lastTag, d.chained = last, true
			return nil
		}
		if err == nil {
			err = d.apply(ops, data)
		}
		if err != nil {
			return fmt.Errorf("record at %d: %w", off, err)
		}
	}
}

// apply repeats the operations of one journal record.
func (d *Disk) apply(ops []record.Op, data []byte) error {
	for _, op := range ops {
		if op.Kind == record.OpResize {
			if op.A > record.MaxImageSize || int64(op.A) < d.Size() {
				return fmt.Errorf("resize to %d bytes", op.A)
			}
			d.size.Store(int64(op.A))
			d.active.SetSize(int64(op.A), true)
			continue
		}
		sectors := uint64(d.Size()+sectorSize-1) / sectorSize
		if op.A > sectors || op.B > sectors-op.A {
			return fmt.Errorf("%d sectors at %d of %d", op.B, op.A, sectors)
		}
		for op.B > 0 {
			region, first := op.A/record.RegionSectors, int(op.A%record.RegionSectors)
			n := min(int(min(op.B, record.RegionSectors)), record.RegionSectors-first)
			if op.Kind == record.OpZero {
				d.active.Zero(region, first, n, true)
			} else {
				d.active.Write(region, first, data[:n*sectorSize], true)
				data = data[n*sectorSize:]
			}
			op.A, op.B = op.A+uint64(n), op.B-uint64(n)
		}
	}
	return nil
}
