package blockstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealdisk/sealdisk/blockstore/valuelog"
)

// Badger maps its files: a page that the file system cannot back is a bus error in one
// of Badger's goroutines, and the end of the process. Three things stand before that:
// blocks of the value log are allocated before it is written; a write is refused while
// less than headroom is free beside the reserve; and when somebody else fills the disk
// the reserve is given up, piece by piece, to what Badger still has to write down. That
// holds as long as Badger settles before the reserve is used up as well.
const (
	headroom     = 32 << 20 // free bytes for tables, memtables, a value log that was just begun
	lastResort   = 4 << 20  // below it even deletions are refused
	reserveStep  = 64 << 20
	keeperPeriod = 200 * time.Millisecond
	settled      = time.Second // after a write Badger has compacted by then
	diskRate     = 8 << 30     // bytes in a second that somebody else can write at most
)

// space keeps the reserve and the blocks of the value log.
type space struct {
	mu      sync.Mutex
	dir     string
	reserve *os.File
	want    int64 // bytes the reserve should have
	have    int64 // bytes it has

	busy     time.Time // when Badger was last given something
	vlog     valuelog.Ahead
	memtable string // its log, which is allocated
}

func (p *space) open(dir string, want int64) error {
	p.dir, p.want = dir, want
	// A file is given up once it is full; what is under way may still land in it.
	p.vlog = valuelog.Ahead{Dir: filepath.Join(dir, "badger"), Limit: vlogFileSize + maxInflight}
	f, err := os.OpenFile(filepath.Join(dir, "reserve"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("blockstore: reserve: %w", err)
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return fmt.Errorf("blockstore: reserve: %w", err)
	}
	p.reserve, p.have = f, st.Size()
	if p.have > want {
		return p.resize(want)
	}
	return p.restore()
}

func (p *space) close() {
	if p.reserve != nil {
		p.reserve.Close()
	}
}

// free returns the bytes that are free for us on the file system, and its size.
func (p *space) free() (avail, total int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(p.dir, &st); err != nil {
		return 0, 0, fmt.Errorf("blockstore: statfs: %w", err)
	}
	return int64(st.Bavail) * st.Bsize, int64(st.Blocks) * st.Bsize, nil
}

// resize shrinks the reserve to n bytes.
func (p *space) resize(n int64) error {
	if err := p.reserve.Truncate(n); err != nil {
		return fmt.Errorf("blockstore: reserve: %w", err)
	}
	p.have = n
	return nil
}

// restore grows the reserve as far as it may.
func (p *space) restore() error {
	for p.have < p.want {
		avail, _, err := p.free()
		if err != nil {
			return err
		}
		step := min(p.want-p.have, reserveStep)
		if avail < step+2*headroom {
			return nil
		}
		switch err := allocate(p.reserve, p.have, step); {
		case errors.Is(err, ErrNoSpace):
			return nil
		case err != nil:
			return err
		}
		p.have += step
	}
	return nil
}

// allocate backs bytes of a file with blocks; the file grows to hold them.
func allocate(f *os.File, off, n int64) error {
	for {
		err := unix.Fallocate(int(f.Fd()), 0, off, n)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
			return fmt.Errorf("blockstore: %w", ErrNoSpace)
		case errors.Is(err, unix.EOPNOTSUPP):
			return zero(f, off, n)
		}
		return fmt.Errorf("blockstore: allocate: %w", err)
	}
}

var zeros [1 << 20]byte // never written

// zero writes n zero bytes at off.
func zero(f *os.File, off, n int64) error {
	for n > 0 {
		k, err := f.WriteAt(zeros[:min(n, int64(len(zeros)))], off)
		if err != nil {
			return writeError("allocate", err)
		}
		off, n = off+int64(k), n-int64(k)
	}
	return nil
}

func writeError(what string, err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("blockstore: %s: %w", what, ErrNoSpace)
	}
	return fmt.Errorf("blockstore: %s: %w", what, err)
}

// admit says whether n bytes may be given to Badger now, all that are under way
// included. Deletions (spend false) may use what new data may not.
func (p *space) admit(n int64, spend bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !spend {
		p.busy = time.Now()
		avail, err := p.relieve()
		if err == nil && avail < lastResort {
			err = fmt.Errorf("blockstore: %w", ErrNoSpace)
		}
		return err
	}
	avail, _, err := p.free()
	if err != nil {
		return err
	}
	if avail < headroom+p.want-p.have {
		return fmt.Errorf("blockstore: %w", ErrNoSpace) // the reserve is not for who is refused
	}
	p.busy = time.Now()
	if err := p.allocateMemtable(); err != nil {
		return err
	}
	return p.allocateVlog(n, avail-headroom-(p.want-p.have))
}

// relieve gives up a piece of the reserve if the rest of the disk is full, and returns
// what is free then.
func (p *space) relieve() (avail int64, err error) {
	for {
		if avail, _, err = p.free(); err != nil || avail >= headroom/2 || p.have == 0 {
			return avail, err
		}
		if err := p.resize(p.have - min(p.have, headroom/2)); err != nil {
			return 0, err
		}
	}
}

// roomToClose says whether Badger has room for what it writes when it opens or closes.
func (p *space) roomToClose() (bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	avail, err := p.relieve()
	return avail >= lastResort, err
}

// roomToRewrite makes room for n bytes that are moved from one value log to another, out of
// the reserve if need be: that is one of the things it is for. Enough stays for the rest
// that Badger writes.
func (p *space) roomToRewrite(n int64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busy = time.Now()
	avail, _, err := p.free()
	if err != nil {
		return err
	}
	need := headroom + n
	if avail < need && p.have > 0 {
		if err := p.resize(max(0, p.have-(need-avail))); err != nil {
			return err
		}
		if avail, _, err = p.free(); err != nil {
			return err
		}
	}
	if avail < need {
		return fmt.Errorf("blockstore: reclaim: %w", ErrNoSpace)
	}
	return p.allocateVlog(n, avail-lastResort)
}

// allocateVlog backs the value log with blocks for n bytes beyond what is written, out
// of budget free bytes.
func (p *space) allocateVlog(n, budget int64) error {
	err := p.vlog.Allocate(n, budget)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, valuelog.ErrBudget):
		return fmt.Errorf("blockstore: %w", ErrNoSpace)
	}
	return writeError("allocate", err)
}

// allocateMemtable backs the log of the memtable that is written now.
func (p *space) allocateMemtable() error {
	files, err := filepath.Glob(filepath.Join(p.dir, "badger", "*.mem"))
	if err != nil || len(files) == 0 {
		return err
	}
	path := slices.MaxFunc(files, valuelog.Compare)
	if path == p.memtable {
		return nil
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("blockstore: memtable: %w", err)
	}
	defer f.Close()
	err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, 2*memTableSize)
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return writeError("allocate", err)
	}
	p.memtable = path
	return nil
}

// keepSpace looks after the reserve until ctx ends.
func (s *Store) keepSpace(ctx context.Context) {
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-next.C:
		}
		pause, err := s.space.keep()
		if err != nil {
			s.fail(err)
			return
		}
		next.Reset(pause)
	}
}

// keep gives up or restores the reserve, and says when to look again: before anybody
// could have written what is free now, as long as Badger may still be writing.
func (p *space) keep() (pause time.Duration, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Since(p.busy) > settled { // nothing needs the reserve now
		return keeperPeriod, p.restore()
	}
	avail, err := p.relieve()
	if err != nil {
		return 0, err
	}
	if err := p.restore(); err != nil {
		return 0, err
	}
	soon := time.Duration(avail) * time.Second / diskRate
	return min(max(soon, time.Millisecond), keeperPeriod), nil
}

// Free returns how many bytes new objects may take before [ErrNoSpace], and the size of
// the file system.
func (s *Store) Free() (avail, total int64, err error) {
	s.space.mu.Lock()
	defer s.space.mu.Unlock()
	avail, total, err = s.space.free()
	if err != nil {
		return 0, 0, err
	}
	return max(0, avail-headroom-(s.space.want-s.space.have)), total, nil
}

// Stats is the store's account of itself.
type Stats struct {
	Objects      int64 // number of objects
	LiveBytes    int64 // bytes that they occupy
	DeadBytes    int64 // bytes of deleted objects not given back yet, an estimate
	FileBytes    int64 // bytes allocated on disk by Badger's files and journals
	ReserveBytes int64 // and by the reserve
	FreeBytes    int64 // what new objects may take
	TotalBytes   int64 // size of the file system
}

// Stats returns the account as of now.
func (s *Store) Stats() (Stats, error) {
	st := Stats{
		Objects:   s.counts.objects.Load(),
		LiveBytes: s.counts.live.Load(),
		DeadBytes: max(0, s.counts.dead.Load()),
	}
	var err error
	if st.FreeBytes, st.TotalBytes, err = s.Free(); err != nil {
		return Stats{}, err
	}
	for _, d := range []string{"badger", "journal"} {
		n, err := allocated(filepath.Join(s.dir, d))
		if err != nil {
			return Stats{}, err
		}
		st.FileBytes += n
	}
	s.space.mu.Lock()
	st.ReserveBytes = s.space.have
	s.space.mu.Unlock()
	return st, nil
}

// allocated sums the blocks of the files beneath dir; files that vanish meanwhile count
// as nothing.
func allocated(dir string) (sum int64, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.Type().IsRegular() {
			return nil
		}
		var info fs.FileInfo
		if err == nil {
			info, err = d.Info()
		}
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("blockstore: %w", err)
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			sum += st.Blocks * 512
		}
		return nil
	})
	return sum, err
}
