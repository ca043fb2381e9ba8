package powercut

import (
	"errors"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// FS is a file system in memory. It is safe for concurrent use.
type FS struct {
	mu     sync.Mutex
	root   *inode
	inodes map[uint64]*inode // those that the kernel knows, and the root
	last   uint64            // newest inode number
	ops    []*nameOp         // not durable, in order
	made   uint64            // changes of names so far
	lists  map[uint64][]string
}

// inode is a folder, a file, or a socket.
type inode struct {
	id      uint64
	mode    uint32 // type and permissions
	links   uint32
	lookups uint64
	mtime   time.Time
	entries map[string]*inode // of a folder, as it reads now
	synced  map[string]*inode // and as it is durable
	*content
}

// nameOp is one change of names: all of it survives or none.
type nameOp struct {
	seq  uint64 // how many were before it
	puts []namePut
}

// namePut makes a name in a folder mean to; nil removes it.
type namePut struct {
	dir  *inode
	name string
	to   *inode
}

// New makes an empty file system.
func New() *FS {
	f := &FS{inodes: make(map[uint64]*inode), lists: make(map[uint64][]string)}
	f.root = f.newInode(unix.S_IFDIR | 0o755)
	f.inodes[f.root.id] = f.root
	return f
}

func (f *FS) newInode(mode uint32) *inode {
	f.last++
	n := &inode{id: f.last, mode: mode, mtime: time.Now()}
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		n.entries, n.synced = make(map[string]*inode), make(map[string]*inode)
	case unix.S_IFREG:
		n.content = newContent()
	}
	return n
}

func (n *inode) dir() bool { return n.mode&unix.S_IFMT == unix.S_IFDIR }

// change applies a change of names; it is not durable yet.
func (f *FS) change(puts ...namePut) {
	for _, p := range puts {
		if old := p.dir.entries[p.name]; old != nil {
			old.links--
		}
		if p.to == nil {
			delete(p.dir.entries, p.name)
		} else {
			p.dir.entries[p.name] = p.to
			p.to.links++
		}
		p.dir.mtime = time.Now()
	}
	f.ops = append(f.ops, &nameOp{f.made, puts})
	f.made++
}

// surviving gives the ops that survive if of each folder those before limit[folder] do: with one
// folder of a rename survives the other's part, and what came before it there.
func (f *FS) surviving(limit map[*inode]int) map[*nameOp]bool {
	kept := make(map[*nameOp]bool)
	for again := true; again; {
		again = false
		for i, op := range f.ops {
			if kept[op] || !slices.ContainsFunc(op.puts, func(p namePut) bool { return i < limit[p.dir] }) {
				continue
			}
			kept[op], again = true, true
			for _, p := range op.puts {
				limit[p.dir] = max(limit[p.dir], i+1)
			}
		}
	}
	return kept
}

// syncDir makes the names in a folder durable.
func (f *FS) syncDir(n *inode) {
	kept := f.surviving(map[*inode]int{n: len(f.ops)})
	var rest []*nameOp
	for _, op := range f.ops {
		if !kept[op] {
			rest = append(rest, op)
			continue
		}
		for _, p := range op.puts {
			place(p.dir.synced, p)
		}
	}
	f.ops = rest
}

func place(names map[string]*inode, p namePut) {
	if p.to == nil {
		delete(names, p.name)
	} else {
		names[p.name] = p.to
	}
}

// Cut gives the file system as it may be after the power went now. The seed decides what survives
// of what was not synced. The mount of f, if there is one, goes on undisturbed.
func (f *FS) Cut(seed uint64) *FS {
	f.mu.Lock()
	defer f.mu.Unlock()
	fate := newFate(seed)
	kept := f.surviving(f.limits(fate))
	names := make(map[*inode]map[string]*inode)
	lost := uint64(math.MaxUint64)
	for _, op := range f.ops {
		if !kept[op] {
			lost = min(lost, op.seq)
			continue
		}
		for _, p := range op.puts {
			if names[p.dir] == nil {
				names[p.dir] = maps.Clone(p.dir.synced)
			}
			place(names[p.dir], p)
		}
	}
	return f.copyTree(
		func(n *inode) map[string]*inode {
			if m, ok := names[n]; ok {
				return m
			}
			return n.synced
		},
		func(c *content) *content { return c.cut(fate, lost) })
}

// limits chooses for each folder how many of the ops may survive there.
func (f *FS) limits(fate *fate) map[*inode]int {
	limit := make(map[*inode]int)
	if len(f.ops) == 0 || fate.drop == 1 && fate.keep == 0 {
		return limit
	}
	shared := fate.r.IntN(len(f.ops) + 1)
	alike := fate.r.IntN(2) == 0 // as of a journal that all folders share
	for _, op := range f.ops {
		for _, p := range op.puts {
			if _, ok := limit[p.dir]; ok {
				continue
			}
			switch {
			case fate.names == 1 || fate.r.Float64() < fate.names/2:
				limit[p.dir] = len(f.ops)
			case alike:
				limit[p.dir] = shared
			default:
				limit[p.dir] = fate.r.IntN(len(f.ops) + 1)
			}
		}
	}
	return limit
}

// Synced gives a copy of the file system as if all of it had been synced.
func (f *FS) Synced() *FS {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.copyTree(func(n *inode) map[string]*inode { return n.entries }, (*content).copyNow)
}

func (f *FS) copyTree(names func(*inode) map[string]*inode, data func(*content) *content) *FS {
	out := New()
	seen := map[*inode]*inode{f.root: out.root}
	var walk func(from, to *inode)
	walk = func(from, to *inode) {
		entries := names(from)
		for _, name := range slices.Sorted(maps.Keys(entries)) {
			old := entries[name]
			n, ok := seen[old]
			if !ok {
				n = out.newInode(old.mode)
				n.mtime = old.mtime
				if old.content != nil {
					n.content = data(old.content)
				}
				seen[old] = n
			}
			n.links++
			to.entries[name], to.synced[name] = n, n
			if !ok && old.dir() {
				walk(old, n)
			}
		}
	}
	walk(f.root, out.root)
	return out
}

// Save writes the files out to a folder of another file system, to be looked at.
func (f *FS) Save(dir string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return save(f.root, dir)
}

func save(n *inode, path string) error {
	if n.dir() {
		if err := os.MkdirAll(path, 0o700); err != nil {
			return err
		}
		for name, child := range n.entries {
			if err := save(child, filepath.Join(path, name)); err != nil {
				return err
			}
		}
		return nil
	}
	if n.content == nil {
		return nil
	}
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	err = out.Truncate(n.size)
	for index, p := range n.pages {
		if p != zeroPage {
			_, werr := out.WriteAt(p[:min(pageSize, n.size-index*pageSize)], index*pageSize)
			err = errors.Join(err, werr)
		}
	}
	return errors.Join(err, out.Close())
}

// Pending tells how much a cut could lose now: changes of names, and pages and sizes of files that
// have a name.
func (f *FS) Pending() (names, pages int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	seen := make(map[*inode]bool)
	var walk func(n *inode)
	walk = func(n *inode) {
		for _, child := range n.entries {
			if seen[child] {
				continue
			}
			seen[child] = true
			if child.content != nil {
				pages += len(child.dirty) + len(child.sizes)
			}
			walk(child)
		}
	}
	walk(f.root)
	return len(f.ops), pages
}
