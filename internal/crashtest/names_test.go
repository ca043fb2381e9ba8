package crashtest

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

const (
	imageName  = "disk"
	maxExtra   = 3 // snapshots, and other images, at a time
	numSources = 3
)

// thing is an image or a snapshot beside the image that is written.
type thing struct {
	unsure bool   // making or removing it was not acknowledged
	state  states // what a snapshot or clone may hold; nil for an import
	sha    string // of an import
}

// source is a file to import.
type source struct{ path, sha string }

// names are the images and snapshots that commands make and remove beside the writer.
type names struct {
	mu      sync.Mutex
	things  map[string]*thing
	number  int
	sources []source
	done    map[string]int // commands that were acknowledged
	freed   int64          // bytes of value logs that gc gave back
}

func newNames(dir string) (*names, error) {
	n := &names{things: make(map[string]*thing), done: make(map[string]int)}
	for i := range numSources {
		b := make([]byte, 4<<20+i*3_000_001)
		r := rand.NewChaCha8([32]byte{byte(i)})
		r.Read(b)
		clear(b[1<<20 : 2<<20])
		path := filepath.Join(dir, fmt.Sprintf("source%d", i))
		if err := os.WriteFile(path, b, 0o600); err != nil {
			return nil, err
		}
		sum := sha256.Sum256(b)
		n.sources = append(n.sources, source{path, hex.EncodeToString(sum[:])})
	}
	return n, nil
}

// copy is what is known at this moment; commands that run are not acknowledged in it.
func (n *names) copy() *names {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := &names{things: make(map[string]*thing), number: n.number, sources: n.sources, done: n.done, freed: n.freed}
	for name, t := range n.things {
		t := *t
		c.things[name] = &t
	}
	return c
}

// command is one thing to do beside the writer.
type command struct {
	args []string
	name string // that is made or removed, "" if none
	make *thing
}

// next chooses a command and notes that it begins.
func (n *names) next(m *model, r *rand.Rand) (c command, end func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	end = func() {}
	var have, snapshots []string
	for _, name := range slices.Sorted(maps.Keys(n.things)) {
		if strings.Contains(name, "@") {
			snapshots = append(snapshots, name)
		} else {
			have = append(have, name)
		}
	}
	n.number++
	freeze := func() *thing {
		f := m.freeze()
		t := &thing{state: f.state}
		end = func() { t.state = f.done() }
		return t
	}
	switch x := r.IntN(10); {
	case x < 3 && len(snapshots) < maxExtra:
		c.name = fmt.Sprintf("%s@s%d", imageName, n.number)
		c.make, c.args = freeze(), []string{"snapshot", c.name}
	case x < 5 && len(have) < maxExtra:
		s := n.sources[r.IntN(len(n.sources))]
		c.name = fmt.Sprintf("import%d", n.number)
		c.make, c.args = &thing{sha: s.sha}, []string{"import", "--format", "raw", s.path, c.name}
	case x < 6 && len(have) < maxExtra:
		c.name = fmt.Sprintf("clone%d", n.number)
		c.make, c.args = freeze(), []string{"clone", imageName, c.name}
	case x < 8 && len(have)+len(snapshots) > 0:
		all := append(have, snapshots...)
		c.name = all[r.IntN(len(all))]
		c.args = []string{"rm", c.name}
	default:
		c.args = []string{"--json", "gc"}
	}
	if c.make != nil {
		c.make.unsure = true
		n.things[c.name] = c.make
	} else if c.name != "" {
		n.things[c.name].unsure = true
	}
	return c, end
}

// finish notes what came of a command.
func (n *names) finish(c command, end func(), out []byte, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	end()
	if err != nil {
		return
	}
	if c.name == "" {
		var collected struct{ Freed int64 }
		if json.Unmarshal(out, &collected) == nil {
			n.freed += collected.Freed
		}
		n.done["gc"]++
		return
	}
	n.done[c.args[0]]++
	switch {
	case c.make != nil:
		c.make.unsure = false
	default:
		delete(n.things, c.name)
	}
}

// check compares what ls tells with what is known, looks into one image and one snapshot, and takes
// what was unsure as it is.
func (n *names) check(r *rig, rnd *rand.Rand) error {
	listed, err := r.listed()
	if err != nil {
		return err
	}
	if !listed[imageName] {
		return errors.New("the image is not listed")
	}
	for name := range listed {
		if name != imageName && n.things[name] == nil {
			return fmt.Errorf("%s is listed, which was removed or never made", name)
		}
	}
	var there []string
	for _, name := range slices.Sorted(maps.Keys(n.things)) {
		t := n.things[name]
		switch {
		case listed[name]:
			t.unsure = false
			there = append(there, name)
		case t.unsure:
			delete(n.things, name)
		default:
			return fmt.Errorf("%s was acknowledged and is not listed", name)
		}
	}
	rnd.Shuffle(len(there), func(i, j int) { there[i], there[j] = there[j], there[i] })
	for _, name := range there[:min(2, len(there))] {
		if err := n.things[name].check(r, name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func (t *thing) check(r *rig, name string) error {
	if t.state == nil {
		out, err := r.ask("hash", name)
		if err != nil {
			return err
		}
		if got := strings.TrimSpace(string(out)); got != t.sha {
			return fmt.Errorf("hash: got %s, want %s", got, t.sha)
		}
		return nil
	}
	got, err := r.read(name)
	if err != nil {
		return err
	}
	if err := t.state.check(got); err != nil {
		return err
	}
	narrow := make(states, len(got)) // from now on it stays as it is
	for i, g := range got {
		narrow[i] = []version{t.state[i][slices.IndexFunc(t.state[i], g.is)]}
	}
	t.state = narrow
	return nil
}
