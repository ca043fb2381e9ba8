package powercut

import (
	"bytes"
	"maps"
	"math/rand/v2"
	"slices"
)

const (
	pageSize   = 4096
	tearSize   = 512 // what a disk writes whole
	maxHistory = 8   // versions kept of one page between two syncs
)

// page is never changed; a write makes a new one. A nil page was never written and reads as zeros.
type page [pageSize]byte

var zeroPage = new(page)

// version is what a page became at a moment; p is nil if it was cut off.
type version struct {
	seq uint64
	p   *page
}

type history struct {
	base     *page // as of the last sync
	versions []version
}

type resize struct {
	seq  uint64
	size int64
	made uint64 // changes of names in the file system before it
}

// content is what is in a file, as it reads now and as it was last synced.
type content struct {
	seq      uint64 // counts changes
	size     int64
	pages    map[int64]*page
	baseSize int64 // as of the last sync
	sizes    []resize
	dirty    map[int64]*history
	made     uint64 // changes of names in the file system before the last truncation
}

func newContent() *content {
	return &content{pages: make(map[int64]*page), dirty: make(map[int64]*history)}
}

func (c *content) read(b []byte, off int64) int {
	if off >= c.size {
		return 0
	}
	n := int(min(int64(len(b)), c.size-off))
	for done := 0; done < n; {
		at := off + int64(done)
		p := c.pages[at/pageSize]
		if p == nil {
			p = zeroPage
		}
		done += copy(b[done:n], p[at%pageSize:])
	}
	return n
}

func (c *content) write(b []byte, off int64) {
	c.seq++
	end := off + int64(len(b))
	for len(b) > 0 {
		index, within := off/pageSize, int(off%pageSize)
		n := min(len(b), pageSize-within)
		p := zeroPage
		if n != pageSize || !bytes.Equal(b[:n], zeroPage[:]) {
			p = new(page)
			if old := c.pages[index]; old != nil && n != pageSize {
				*p = *old
			}
			copy(p[within:], b[:n])
		}
		c.put(index, p)
		b, off = b[n:], off+int64(n)
	}
	if end > c.size {
		c.setSize(end)
	}
}

// put makes p the newest version of a page; nil takes it away.
func (c *content) put(index int64, p *page) {
	h := c.dirty[index]
	if h == nil {
		h = &history{base: c.pages[index]}
		c.dirty[index] = h
	}
	if len(h.versions) == maxHistory {
		h.versions = h.versions[1:]
	}
	h.versions = append(h.versions, version{c.seq, p})
	if p == nil {
		delete(c.pages, index)
	} else {
		c.pages[index] = p
	}
}

func (c *content) setSize(n int64) {
	c.size = n
	c.sizes = append(c.sizes, resize{c.seq, n, c.made})
}

// truncate sets the size, down or up, after so many changes of names.
func (c *content) truncate(n int64, made uint64) {
	c.seq++
	c.made = made
	if n < c.size {
		for _, index := range slices.Sorted(maps.Keys(c.pages)) {
			switch start := index * pageSize; {
			case start >= n:
				c.put(index, nil)
			case start+pageSize > n:
				p := *c.pages[index]
				clear(p[n-start:])
				c.put(index, &p)
			}
		}
	}
	if n != c.size {
		c.setSize(n)
	}
}

// zero makes a range read as zeros; whole pages of it become holes.
func (c *content) zero(off, n int64) {
	c.seq++
	end := min(off+n, c.size)
	for off < end {
		index, within := off/pageSize, off%pageSize
		k := min(end-off, pageSize-within)
		switch old := c.pages[index]; {
		case old == nil:
		case k == pageSize:
			c.put(index, nil)
		default:
			p := *old
			clear(p[within : within+k])
			c.put(index, &p)
		}
		off += k
	}
}

// seek finds the next page that was written, or was not, and reports false if there is none.
func (c *content) seek(off int64, data bool) (int64, bool) {
	if off < 0 || off >= c.size {
		return 0, false
	}
	for off < c.size {
		if (c.pages[off/pageSize] != nil) == data {
			return off, true
		}
		off = (off/pageSize + 1) * pageSize
	}
	return c.size, !data
}

func (c *content) sync() {
	c.baseSize, c.sizes = c.size, nil
	clear(c.dirty)
}

// copyNow is the content as it reads now, all of it synced.
func (c *content) copyNow() *content {
	return &content{size: c.size, baseSize: c.size, pages: maps.Clone(c.pages), dirty: make(map[int64]*history)}
}

// fate says how much of what was not synced a cut leaves.
type fate struct {
	r     *rand.Rand
	keep  float64 // chance of a page to be as new as it may be
	drop  float64 // chance of it to be as of the last sync
	torn  float64 // chance of a page to be torn between two versions
	names float64 // chance of a folder to keep all its names
}

func newFate(seed uint64) *fate {
	f := &fate{r: rand.New(rand.NewPCG(seed, 0x5ea1))}
	switch f.r.IntN(6) {
	case 0: // nothing but what was synced
		f.drop = 1
	case 1: // all that was written
		f.keep, f.names = 1, 1
	case 2: // all data, few names
		f.keep = 1
	default:
		f.keep, f.drop = f.r.Float64(), f.r.Float64()
		f.torn, f.names = f.r.Float64()/2, f.r.Float64()
	}
	return f
}

// cut is the content as the disk might hold it, if the changes of names from lost on did
// not all survive.
func (c *content) cut(f *fate, lost uint64) *content {
	size, from := c.cutSize(f, lost)
	out := &content{size: size, baseSize: size, pages: maps.Clone(c.pages), dirty: make(map[int64]*history)}
	for _, index := range slices.Sorted(maps.Keys(c.dirty)) {
		candidates := c.candidates(index, from)
		p := f.choose(candidates)
		if f.r.Float64() < f.torn {
			p = f.tear(p, f.choose(candidates))
		}
		if p == nil {
			delete(out.pages, index)
		} else {
			out.pages[index] = p
		}
	}
	for index, p := range out.pages {
		switch start := index * pageSize; {
		case start >= size:
			delete(out.pages, index)
		case start+pageSize > size:
			q := *p
			clear(q[size-start:])
			out.pages[index] = &q
		}
	}
	return out
}

// cutSize chooses a size: the first n resizes survive. A file is cut off no sooner than
// the names that changed before it.
func (c *content) cutSize(f *fate, lost uint64) (size int64, n int) {
	most := len(c.sizes)
	for i, s := range c.sizes {
		if c.shrinks(i) && s.made > lost {
			most = i
			break
		}
	}
	switch x := f.r.Float64(); {
	case x < f.keep:
		n = most
	case f.r.Float64() >= f.drop:
		n = f.r.IntN(most + 1)
	}
	if n == 0 {
		return c.baseSize, 0
	}
	return c.sizes[n-1].size, n
}

// candidates are what a page may be after a cut that the first n resizes survive, oldest first.
func (c *content) candidates(index int64, n int) []*page {
	var after uint64
	before := ^uint64(0)
	whole := false // the last surviving truncation took all of the page
	for i, s := range c.sizes {
		if !c.shrinks(i) || s.size >= (index+1)*pageSize {
			continue
		}
		if i < n {
			after, whole = s.seq, s.size <= index*pageSize
		} else {
			before = min(before, s.seq)
		}
	}
	h := c.dirty[index]
	var list []*page
	switch {
	case after == 0:
		list = append(list, h.base)
	case whole:
		list = append(list, nil)
	}
	for _, v := range h.versions {
		if v.seq >= after && v.seq < before {
			list = append(list, v.p)
		}
	}
	if len(list) == 0 { // there was no such page at the truncation
		list = append(list, nil)
	}
	return list
}

func (c *content) shrinks(i int) bool {
	if i == 0 {
		return c.sizes[0].size < c.baseSize
	}
	return c.sizes[i].size < c.sizes[i-1].size
}

func (f *fate) choose(list []*page) *page {
	switch {
	case f.r.Float64() < f.keep:
		return list[len(list)-1]
	case f.r.Float64() < f.drop:
		return list[0]
	}
	return list[f.r.IntN(len(list))]
}

// tear takes each 512 bytes from one of two pages.
func (f *fate) tear(a, b *page) *page {
	if a == b {
		return a
	}
	if a == nil {
		a = zeroPage
	}
	if b == nil {
		b = zeroPage
	}
	p := *a
	for at := 0; at < pageSize; at += tearSize {
		if f.r.IntN(2) == 0 {
			copy(p[at:at+tearSize], b[at:])
		}
	}
	return &p
}
