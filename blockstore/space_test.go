package blockstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// smallDisk mounts a tmpfs of its own: filling a disk must hurt nobody else.
func smallDisk(t *testing.T, size int64) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Fatalf("this test mounts a file system, as root: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fillDisk writes a file until nothing fits any more, beside the store's reserve.
func fillDisk(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for n := 1 << 20; n >= 4096; {
		if _, err := f.Write(zeros[:n]); errors.Is(err, unix.ENOSPC) {
			n /= 2
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func TestFullDisk(t *testing.T) {
	disk := smallDisk(t, 220<<20)
	dir := filepath.Join(disk, "store")
	o := Options{Reserve: 48 << 20}
	if err := Create(dir, o); err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), dir, o)
	if err != nil {
		t.Fatal(err)
	}
	var kept []Object
	for {
		objs := []Object{object(1 << 20), object(1 << 20), object(5000)}
		err := s.PutObjects(t.Context(), objs)
		if errors.Is(err, ErrNoSpace) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if kept = append(kept, objs...); len(kept) > 1000 {
			t.Fatal("the disk does not fill")
		}
	}
	if len(kept) < 3*30 {
		t.Errorf("%d objects fitted, want at least 90", len(kept))
	}
	if err := s.Err(); err != nil {
		t.Fatalf("the store stopped: %v", err)
	}
	if avail, _, err := s.Free(); avail > 16<<20 || err != nil {
		t.Errorf("free: %d, %v", avail, err)
	}
	for _, o := range kept {
		wantObject(t, s, o)
	}
	gone := len(kept) * 2 / 3
	if err := s.DeleteObjects(t.Context(), ids(kept[:gone])); err != nil { // out of the reserve
		t.Fatal(err)
	}
	if _, err := s.Reclaim(t.Context()); err != nil { // or it would go on beside what follows
		t.Fatal(err)
	}
	awaitSettled(t, s)
	fillDisk(t, filepath.Join(disk, "guest.log")) // somebody takes the rest
	if err := s.PutObjects(t.Context(), []Object{object(1 << 20)}); !errors.Is(err, ErrNoSpace) {
		t.Errorf("put on a full disk: got %v, want ErrNoSpace", err)
	}
	if st, err := s.Stats(); st.ReserveBytes == 0 || err != nil {
		t.Errorf("reserve of a store that had nothing to do: %d bytes, %v", st.ReserveBytes, err)
	}
	if _, err := s.CreateJournal(ImageID{1}, 1, journalHeader(1), testJournal); !errors.Is(err, ErrNoSpace) {
		t.Errorf("journal on a full disk: got %v, want ErrNoSpace", err)
	}
	for _, o := range kept[gone:] {
		wantObject(t, s, o)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(t.Context(), dir, o); err == nil {
		s.Close()
	} else if !errors.Is(err, ErrNoSpace) {
		t.Fatalf("open on a full disk: got %v, want nil or ErrNoSpace", err)
	}
	if err := os.Remove(filepath.Join(disk, "guest.log")); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(t.Context(), dir, o); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, o := range kept[gone:] {
		wantObject(t, s, o)
	}
	if _, err := s.Reclaim(t.Context()); err != nil {
		t.Fatal(err)
	}
	put(t, s, object(1<<20))
}

// awaitSettled waits until nothing has needed the reserve for a while, and it is whole.
func awaitSettled(t *testing.T, s *Store) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for range 3000 {
		s.space.mu.Lock()
		done := time.Since(s.space.busy) > settled && s.space.have == s.space.want
		s.space.mu.Unlock()
		if done {
			return
		}
		<-tick.C
	}
	t.Fatal("the store does not settle")
}

func ids(objs []Object) []ObjectID {
	var ids []ObjectID
	for _, o := range objs {
		ids = append(ids, o.ID)
	}
	return ids
}

// Somebody else fills the disk while objects are put and deleted: writes are refused,
// and the process lives.
func TestDiskFilledByOthers(t *testing.T) {
	disk := smallDisk(t, 460<<20)
	dir := filepath.Join(disk, "store")
	o := Options{Reserve: 224 << 20} // it has to outlast the filler until Badger is done

	if err := Create(dir, o); err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), dir, o)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	for range 3 {
		wg.Go(func() {
			for {
				objs := []Object{object(300_000), object(5000), object(900)}
				err := s.PutObjects(t.Context(), objs)
				if errors.Is(err, ErrNoSpace) {
					return
				}
				if err == nil {
					err = s.DeleteObjects(t.Context(), []ObjectID{objs[0].ID})
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	fillDisk(t, filepath.Join(disk, "guest.log"))
	wg.Wait()
	if err := s.Err(); err != nil {
		t.Errorf("the store stopped: %v", err)
	}
}

// Ten full overwrites by a writer that does not stop: space is given back meanwhile.
func TestOverwritesGiveSpaceBack(t *testing.T) {
	const size = 256 << 10
	live, rounds := int64(256<<20), 11
	if testing.Short() {
		live, rounds = 128<<20, 6
	}
	s := newStore(t)
	r := rand.New(rand.NewPCG(1, 2))
	slots := make([]ObjectID, live/size)
	bufs := make([][]byte, 8)
	for i := range bufs {
		bufs[i] = make([]byte, size)
	}
	var peak int64
	for round := range rounds {
		for i := 0; i < len(slots); i += len(bufs) {
			objs := make([]Object, len(bufs))
			for k := range objs {
				objs[k] = cheapObject(r, bufs[k])
			}
			put(t, s, objs...)
			if round > 0 {
				if err := s.DeleteObjects(t.Context(), slots[i:i+len(bufs)]); err != nil {
					t.Fatal(err)
				}
			}
			for k := range objs {
				slots[i+k] = objs[k].ID
			}
		}
		st, err := s.Stats()
		if err != nil {
			t.Fatal(err)
		}
		peak = max(peak, st.FileBytes)
		t.Logf("round %d: live %d MiB, dead %d MiB, files %d MiB", round, st.LiveBytes>>20, st.DeadBytes>>20, st.FileBytes>>20)
	}
	st, err := s.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if st.FileBytes >= 3*live {
		t.Errorf("files of %d MiB for %d MiB, want below three times", st.FileBytes>>20, live>>20)
	}
	if _, err := s.Reclaim(t.Context()); err != nil {
		t.Fatal(err)
	}
	if st, err = s.Stats(); err != nil {
		t.Fatal(err)
	}
	t.Logf("peak %d MiB; after Reclaim: live %d MiB, dead %d MiB, files %d MiB", peak>>20, st.LiveBytes>>20, st.DeadBytes>>20, st.FileBytes>>20)
	for _, id := range slots {
		if ok, err := s.Has(id); !ok || err != nil {
			t.Fatalf("object %v: %v, %v", id, ok, err)
		}
	}
}

func BenchmarkPutObjects(b *testing.B) {
	for _, size := range []int{4 << 10, 64 << 10, 256 << 10, 1 << 20} {
		for _, callers := range []int{1, 4} {
			b.Run(fmt.Sprintf("%dKiB/%d", size>>10, callers), func(b *testing.B) { benchPut(b, size, callers) })
		}
	}
}

// benchPut stores batches of 8 MiB.
func benchPut(b *testing.B, size, callers int) {
	s := newStore(b)
	b.SetBytes(maxBatch)
	var wg sync.WaitGroup
	work := make(chan struct{})
	for c := range callers {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(c), 3))
			objs := make([]Object, maxBatch/size)
			for i := range objs {
				objs[i].Bytes = make([]byte, size)
			}
			for range work {
				for i := range objs {
					objs[i] = cheapObject(r, objs[i].Bytes)
				}
				if err := s.PutObjects(context.Background(), objs); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	for b.Loop() {
		work <- struct{}{}
	}
	close(work)
	wg.Wait()
}

func BenchmarkGet(b *testing.B) {
	for _, size := range []int{4 << 10, 256 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			s := newStore(b)
			r := rand.New(rand.NewPCG(5, 3))
			ids := make([]ObjectID, 64)
			buf := make([]byte, size)
			for i := range ids {
				o := cheapObject(r, buf)
				ids[i] = o.ID
				put(b, s, o)
			}
			dst := make([]byte, 4096)
			i := 0
			b.ReportAllocs()
			for b.Loop() {
				i++
				err := s.Get(context.Background(), ids[i%len(ids)], func(b []byte) error {
					copy(dst, b[len(b)/2:]) // a frame of it
					return nil
				})
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// A commit alone, as a guest's snapshot makes one.
func BenchmarkPutCommit(b *testing.B) {
	s := newStore(b)
	image := ImageID(id32(1))
	seq := Sequence(0)
	for b.Loop() {
		seq++
		mustPutCommit(b, s, image, commitRaw(image, seq, nil))
	}
}

func BenchmarkJournal4KiB(b *testing.B) {
	s := newStore(b)
	j, err := s.CreateJournal(ImageID{1}, 1, journalHeader(1), 64<<20)
	if err != nil {
		b.Fatal(err)
	}
	defer j.Close()
	buf := make([]byte, 8192)
	b.SetBytes(4096)
	for b.Loop() {
		if _, err := j.Append(buf); err != nil {
			b.Fatal(err)
		}
		if err := j.Sync(); err != nil {
			b.Fatal(err)
		}
	}
}
