package format

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
)

// The shape of what Qcow2Writer writes.
const (
	qcow2Cluster     = 64 << 10
	qcow2ClusterBits = 16
	qcow2L2Entries   = qcow2Cluster / 8
	qcow2RefEntries  = qcow2Cluster / 2 // 16-bit counts
	qcow2Copied      = 1 << 63          // the reference count is exactly one
	qcow2V3Length    = 104
)

// Qcow2Writer writes a qcow2 image, version 3, without compression. Data
// clusters are laid out in the order in which they come; all tables follow
// them at Commit, and the header goes last. See Writer for what may be
// called when. It keeps 32 KiB for each 512 MiB of disk that have data.
type Qcow2Writer struct {
	file *pending
	size int64

	mu   sync.Mutex
	next uint32                            // the next cluster of the file
	l2   map[int64]*[qcow2L2Entries]uint32 // by L1 index: cluster in the file, 0 for none
}

// CreateQcow2 starts an export of size bytes to a file at path. The image is
// as large as size rounded up to 512 bytes, the grid of qcow2.
func CreateQcow2(path string, size int64, force bool) (*Qcow2Writer, error) {
	// With 32-bit cluster numbers a file can have 256 TiB.
	const maxSize = 128 << 40
	if size < 0 || size > maxSize {
		return nil, fmt.Errorf("format: create qcow2: size %d is not in 0 to %d", size, int64(maxSize))
	}
	p, err := createPending(path, force)
	if err != nil {
		return nil, fmt.Errorf("format: create qcow2: %w", err)
	}
	return &Qcow2Writer{file: p, size: size, next: 1, l2: map[int64]*[qcow2L2Entries]uint32{}}, nil
}

// WriteAt writes whole clusters: off must be a multiple of 64 KiB, and so
// must len(p), unless p ends the disk. Clusters of zeros take no space.
func (w *Qcow2Writer) WriteAt(p []byte, off int64) (int, error) {
	if err := w.checkAligned(off, int64(len(p))); err != nil {
		return 0, err
	}
	for n := 0; n < len(p); {
		k, zero := zeroRun(p[n:], off+int64(n), qcow2Cluster)
		if !zero {
			at := w.allocate((off+int64(n))/qcow2Cluster, (k+qcow2Cluster-1)/qcow2Cluster)
			if _, err := w.file.f.WriteAt(p[n:n+k], at); err != nil {
				return n, wrapWrite(err)
			}
			w.file.writeBack(at, int64(k))
		}
		n += k
	}
	return len(p), nil
}

// WriteZeros leaves the range out.
func (w *Qcow2Writer) WriteZeros(off, n int64) error { return checkRange(off, n, w.size) }

func (w *Qcow2Writer) checkAligned(off, n int64) error {
	if err := checkRange(off, n, w.size); err != nil {
		return err
	}
	if off%qcow2Cluster != 0 || n%qcow2Cluster != 0 && off+n != w.size {
		return fmt.Errorf("format: write qcow2: %d bytes at %d are not whole clusters of %d", n, off, qcow2Cluster)
	}
	return nil
}

// allocate gives count clusters of the disk from first on their place, one
// run in the file, and returns where it begins.
func (w *Qcow2Writer) allocate(first int64, count int) int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	start := w.next
	for i := range int64(count) {
		c := first + i
		t := w.l2[c/qcow2L2Entries]
		if t == nil {
			t = new([qcow2L2Entries]uint32)
			w.l2[c/qcow2L2Entries] = t
		}
		t[c%qcow2L2Entries] = w.next
		w.next++
	}
	return int64(start) * qcow2Cluster
}

// Commit writes the tables, then the header, makes all durable and gives the
// file its name.
func (w *Qcow2Writer) Commit() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.writeMetadata(); err != nil {
		return wrapWrite(err)
	}
	return wrapWrite(w.file.commit())
}

// Abort removes a file that was not committed.
func (w *Qcow2Writer) Abort() error { return wrapWrite(w.file.abort()) }

func (w *Qcow2Writer) writeMetadata() error {
	l1At, l1Size, err := w.writeTables()
	if err != nil {
		return err
	}
	refAt, refClusters, err := w.writeRefcounts()
	if err != nil {
		return err
	}
	// The file ends on a cluster, also after a last table that is short.
	if err := w.file.f.Truncate(int64(w.next) * qcow2Cluster); err != nil {
		return err
	}
	h := make([]byte, qcow2V3Length+8) // the extensions' end mark is zero
	be := binary.BigEndian
	copy(h, qcow2Magic)
	be.PutUint32(h[4:], 3)
	be.PutUint32(h[20:], qcow2ClusterBits)
	be.PutUint64(h[24:], uint64(w.size+511)&^511)
	be.PutUint32(h[36:], uint32(l1Size))
	be.PutUint64(h[40:], uint64(l1At))
	be.PutUint64(h[48:], uint64(refAt))
	be.PutUint32(h[56:], uint32(refClusters))
	be.PutUint32(h[96:], 4) // 2^4 bits for each reference count
	be.PutUint32(h[100:], qcow2V3Length)
	_, err = w.file.f.WriteAt(h, 0)
	return err
}

// take gives n bytes whole clusters at the end of the file.
func (w *Qcow2Writer) take(n int64) (at int64) {
	at = int64(w.next) * qcow2Cluster
	w.next += uint32((n + qcow2Cluster - 1) / qcow2Cluster)
	return at
}

// writeTables writes the L2 tables and the L1 table, of l1Size entries.
func (w *Qcow2Writer) writeTables() (l1At, l1Size int64, err error) {
	clusters := (w.size + qcow2Cluster - 1) / qcow2Cluster
	l1Size = max(1, (clusters+qcow2L2Entries-1)/qcow2L2Entries)
	l1 := make([]byte, 8*l1Size)
	b := make([]byte, qcow2Cluster)
	for i := range l1Size {
		t := w.l2[i]
		if t == nil {
			continue
		}
		clear(b)
		for j, c := range t {
			if c != 0 {
				binary.BigEndian.PutUint64(b[8*j:], uint64(c)*qcow2Cluster|qcow2Copied)
			}
		}
		at := w.take(qcow2Cluster)
		if _, err := w.file.f.WriteAt(b, at); err != nil {
			return 0, 0, err
		}
		binary.BigEndian.PutUint64(l1[8*i:], uint64(at)|qcow2Copied)
	}
	l1At = w.take(8 * l1Size)
	_, err = w.file.f.WriteAt(l1, l1At)
	return l1At, l1Size, err
}

// writeRefcounts counts one reference for each cluster of the file, those
// that hold the counts included.
func (w *Qcow2Writer) writeRefcounts() (tableAt, tableClusters int64, err error) {
	used := int64(w.next)
	blocks, tableClusters := int64(0), int64(1)
	for total := int64(-1); total != used+blocks+tableClusters; {
		total = used + blocks + tableClusters
		blocks = (total + qcow2RefEntries - 1) / qcow2RefEntries
		tableClusters = (8*blocks + qcow2Cluster - 1) / qcow2Cluster
	}
	if used+blocks+tableClusters > 1<<32-1 {
		return 0, 0, errors.New("qcow2 file of more than 256 TiB")
	}
	total := used + blocks + tableClusters
	table := make([]byte, 8*blocks)
	b := make([]byte, qcow2Cluster)
	for i := range blocks {
		clear(b)
		for j := range min(qcow2RefEntries, total-i*qcow2RefEntries) {
			binary.BigEndian.PutUint16(b[2*j:], 1)
		}
		at := w.take(qcow2Cluster)
		if _, err := w.file.f.WriteAt(b, at); err != nil {
			return 0, 0, err
		}
		binary.BigEndian.PutUint64(table[8*i:], uint64(at))
	}
	tableAt = w.take(8 * blocks)
	_, err = w.file.f.WriteAt(table, tableAt)
	return tableAt, tableClusters, err
}
