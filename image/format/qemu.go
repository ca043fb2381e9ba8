package format

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sort"
	"sync"
)

// qemuSource is an image that qemu-storage-daemon reads for us.
type qemuSource struct {
	raw    *rawSource // the file that the daemon shows
	daemon *storageDaemon
	info   layerInfo
	// files are the image's own files. QEMU reads what lies beyond the end
	// of a file as zeros, so that each answer is followed by a look at
	// their sizes.
	files []*input

	mu  sync.Mutex
	own []Extent // what the top layer holds; nil until it is asked for
}

// openQEMU opens chain[0] with QEMU, which also opens what is below it.
func openQEMU(ctx context.Context, chain []layerInfo, opt Options) (_ Source, err error) {
	s := &qemuSource{info: chain[0]}
	defer func() {
		if err != nil {
			_ = s.Close() // the first error is the one to report
		}
	}()
	for _, l := range chain {
		if err := s.watch(l); err != nil {
			return nil, err
		}
	}
	node := qemuNode(s.info.Path, s.info.Format, s.info.backing == "" || !opt.NoBacking)
	d, f, err := startStorageDaemon(ctx, node)
	if err != nil {
		return nil, err
	}
	s.daemon = d
	s.raw = &rawSource{in: &input{f: f}}
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if s.raw.in.size = fi.Size(); s.raw.in.size != s.info.Size {
		return nil, fmt.Errorf("QEMU shows %d bytes of %d", fi.Size(), s.info.Size)
	}
	return s, nil
}

// watch opens the files of a layer, which also refuses those in use.
func (s *qemuSource) watch(l layerInfo) error {
	seen := map[string]bool{}
	for _, p := range append([]string{l.Path}, l.parts...) {
		if seen[p] {
			continue
		}
		seen[p] = true
		in, err := openInput(p)
		if err != nil {
			return err
		}
		s.files = append(s.files, in)
	}
	return nil
}

func (s *qemuSource) Size() int64    { return s.info.Size }
func (s *qemuSource) Format() string { return s.info.Format }

func (s *qemuSource) Kind() Kind {
	if s.info.backing != "" {
		return Dependent
	}
	return s.info.kind
}

func (s *qemuSource) Backing() (string, string) { return s.info.backing, s.info.backingFormat }

func (s *qemuSource) Close() error {
	var errs []error
	if s.raw != nil {
		errs = append(errs, s.raw.Close())
	}
	if s.daemon != nil {
		s.daemon.stop()
	}
	for _, in := range s.files {
		errs = append(errs, in.Close())
	}
	return errors.Join(errs...)
}

func (s *qemuSource) ReadAt(p []byte, off int64) (int, error) {
	n, err := s.raw.ReadAt(p, off)
	if cause := s.fault(err); cause != nil {
		return 0, fmt.Errorf("format: read %s: %w", s.info.Path, cause)
	}
	return n, err
}

func (s *qemuSource) Extents(ctx context.Context, off, n int64) ([]Extent, error) {
	list, err := s.raw.Extents(ctx, off, n)
	if cause := s.fault(err); cause != nil {
		return nil, fmt.Errorf("format: extents of %s: %w", s.info.Path, cause)
	}
	return list, err
}

// fault tells why an answer of QEMU's, which came with err, is not to be
// believed; nil if it is.
func (s *qemuSource) fault(err error) error {
	for _, in := range s.files {
		if e := in.checkSize(); e != nil {
			return e
		}
	}
	if err == nil || err == io.EOF {
		return nil
	}
	if e := s.daemon.ended(); e != nil {
		return e
	}
	return err
}

func (s *qemuSource) Own(ctx context.Context, off, n int64) ([]Extent, int64, error) {
	if s.info.backing == "" {
		return ownAll(ctx, s, off, n)
	}
	if err := checkRange(off, n, s.Size()); err != nil {
		return nil, off, err
	}
	all, err := s.loadOwn(ctx)
	if err != nil {
		return nil, off, fmt.Errorf("format: map of %s: %w", s.info.Path, err)
	}
	var list extentList
	end := off + n
	for _, e := range all[sort.Search(len(all), func(i int) bool { return all[i].Offset+all[i].Length > off }):] {
		if e.Offset >= end {
			break
		}
		if list.full() {
			return list, e.Offset, nil
		}
		from, to := max(off, e.Offset), min(end, e.Offset+e.Length)
		list.add(from, to-from, e.Zero)
	}
	return list, end, nil
}

// loadOwn asks once for what the top layer holds.
func (s *qemuSource) loadOwn(ctx context.Context) ([]Extent, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.own != nil {
		return s.own, nil
	}
	name, err := qemuName(s.info.Path, s.info.Format, true)
	if err != nil {
		return nil, err
	}
	var own []Extent
	err = runTool(ctx, toolImg, []string{"map", "--output=json", name}, func(r io.Reader) error {
		own, err = parseQEMUMap(r, s.Size())
		return err
	})
	if err == nil {
		err = s.fault(nil)
	}
	if err != nil {
		return nil, err
	}
	s.own = own
	return own, nil
}

// maxMapExtents bounds the memory that a map takes, to 24 MiB. What comes
// after that many is taken as held by the top layer, which costs reading it.
const maxMapExtents = 1 << 20

// parseQEMUMap gives what the top layer holds by the answer of qemu-img map:
// the entries that are present at depth 0.
func parseQEMUMap(r io.Reader, size int64) ([]Extent, error) {
	dec := json.NewDecoder(r)
	if t, err := dec.Token(); err != nil {
		return nil, err
	} else if t != json.Delim('[') {
		return nil, fmt.Errorf("map begins with %v: %w", t, ErrCorrupt)
	}
	own := extentList{}
	var next int64
	for dec.More() {
		var e struct {
			Start, Length int64
			Depth         int
			Present, Zero bool
		}
		if err := dec.Decode(&e); err != nil {
			return nil, err
		}
		if e.Start != next || e.Length <= 0 || e.Length > size-next {
			return nil, fmt.Errorf("map entry of %d bytes at %d after %d: %w", e.Length, e.Start, next, ErrCorrupt)
		}
		next += e.Length
		if e.Depth != 0 || !e.Present {
			continue
		}
		if len(own) == maxMapExtents {
			own.add(e.Start, size-e.Start, false)
			_, err := io.Copy(io.Discard, r)
			return own, err
		}
		own.add(e.Start, e.Length, e.Zero)
	}
	if next != size {
		return nil, fmt.Errorf("map of %d bytes ends at %d: %w", size, next, ErrCorrupt)
	}
	_, err := dec.Token()
	return own, err
}
