package archtest

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// layer is the height of each package in the drawing. A package may import what stands lower, never
// what stands beside it or above. A folder that is not listed is not in the drawing.
var layer = map[string]int{
	"blockstore":                   0,
	"blockstore/storetest":         0,
	"blockstore/valuelog":          -1,
	"cmd/bench/report":             0,
	"cmd/paper/page":               0,
	"internal/measure":             -1,
	"crypto":                       0,
	"fs/copyserver":                0,
	"fs/powercut":                  0,
	"image/dirty":                  0,
	"image/format":                 0,
	"image/plan":                   0,
	"internal/archtest":            0,
	"internal/durable":             0,
	"internal/metrics":             0,
	"internal/picture":             0,
	"transfer/slowlink":            0,
	"image/anchor":                 1,
	"image/lease":                  1,
	"image/record":                 1,
	"internal/home":                1,
	"image/audit":                  2,
	"image/tree":                   2,
	"transfer/peer":                2,
	"image":                        3,
	"image/convert":                4,
	"internal/handover":            4,
	"internal/imagetest":           4,
	"fs":                           5,
	"transfer":                     5,
	"transfer/qemu":                5,
	"internal/exchange":            6,
	"internal/daemon":              7,
	"cmd/bench":                    8,
	"cmd/paper":                    8,
	"cmd/sealdisk":                 8,
	"cmd/slowlink":                 8,
	"internal/crashtest":           9,
	"internal/migratetest":         9,
	"internal/migratetest/guest":   1,
	"internal/migratetest/latency": 0,
	"internal/migratetest/marks":   0,
	"internal/migratetest/page":    0,
}

// testOnly are the packages that only tests may import, and each other.
var testOnly = map[string]bool{
	"blockstore/storetest": true,
	"fs/powercut":          true,
	"internal/imagetest":   true,
}

// fences name the libraries that one folder alone may import, tests included.
var fences = []struct{ library, folder string }{
	{"github.com/hanwen/go-fuse", "fs"},
	{"github.com/dgraph-io/badger", "blockstore"},
	{"github.com/urfave/cli", "cmd"},
}

// Layers checks every import against the drawing.
func Layers(t *Tree) (faults []string) {
	for _, dir := range sortedKeys(t.Files) {
		if _, ok := layer[dir]; !ok {
			faults = append(faults, dir+": not in the drawing of the packages")
			continue
		}
		for _, f := range t.Files[dir] {
			for _, imported := range f.Imports {
				if ours, ok := within(Module, imported); ok {
					faults = append(faults, layerFault(f, dir, ours)...)
				}
				faults = append(faults, fenceFault(f, dir, imported)...)
			}
		}
	}
	return faults
}

func layerFault(f *File, dir, imported string) []string {
	fault := func(why string) []string {
		return []string{fmt.Sprintf("%s: imports %s, which is %s", f.Path, imported, why)}
	}
	switch height, ok := layer[imported]; {
	case !ok:
		return fault("not in the drawing")
	case f.Test() && (imported == dir || testOnly[imported]):
		return nil
	case testOnly[imported] && !testOnly[dir]:
		return fault("for tests")
	case height > layer[dir]:
		return fault("above " + dir)
	case height == layer[dir]:
		return fault("beside " + dir)
	}
	return nil
}

func fenceFault(f *File, dir, imported string) []string {
	for _, fence := range fences {
		_, fenced := within(fence.library, imported)
		if _, home := within(fence.folder, dir); fenced && !home {
			return []string{fmt.Sprintf("%s: imports %s, which belongs to %s alone", f.Path, imported, fence.folder)}
		}
	}
	return nil
}

// within reports whether name is root or below it, and returns what follows root.
func within(root, name string) (rest string, ok bool) {
	if name == root {
		return ".", true
	}
	rest, ok = strings.CutPrefix(name, root+"/")
	return path.Clean(rest), ok
}

func sortedKeys(m map[string][]*File) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
