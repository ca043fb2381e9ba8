package archtest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

var checks = map[string]func(*Tree) []string{
	"Layers":       Layers,
	"Docs":         Docs,
	"Unfinished":   Unfinished,
	"Tests":        Tests,
	"Seeds":        Seeds,
	"MachinePaths": MachinePaths,
}

// TestRepository holds the repository to every check.
func TestRepository(t *testing.T) {
	root := filepath.Join("..", "..")
	if _, err := os.Stat(filepath.Join(root, "go.mod")); err != nil {
		t.Fatalf("not in the repository: %v", err)
	}
	tree, err := Load(os.DirFS(root))
	if err != nil {
		t.Fatal(err)
	}
	if len(tree.Files["internal/archtest"]) == 0 {
		t.Fatal("the tree lacks this package: it was not read")
	}
	for name, check := range checks {
		t.Run(name, func(t *testing.T) {
			for _, fault := range check(tree) {
				t.Error(fault)
			}
		})
	}
}

// code is a Go file of a package with these imports, after a line of its own.
func code(pkg string, imports ...string) string {
	s := "package " + pkg + "\n"
	for _, i := range imports {
		s += fmt.Sprintf("import _ %q\n", i)
	}
	return s
}

// TestChecks shows each check a tree that it must accept or must refuse, and compares the faults by
// their beginning.
func TestChecks(t *testing.T) {
	const fuse, badger, cli = "github.com/hanwen/go-fuse/v2/fuse", "github.com/dgraph-io/badger/v4", "github.com/urfave/cli/v2"
	type files map[string]string
	for _, tt := range []struct {
		name, check string
		files       files
		want        []string
	}{
		{"down", "Layers", files{"image/a.go": code("image", Module+"/crypto", Module+"/image/record")}, nil},
		{"down two steps", "Layers", files{"cmd/sealdisk/a.go": code("main", Module+"/image/format")}, nil},
		{"up", "Layers", files{"crypto/a.go": code("crypto", Module+"/image")}, []string{"crypto/a.go: imports image, which is above"}},
		{"up in a test", "Layers", files{"crypto/a_test.go": code("crypto", Module+"/image")}, []string{"crypto/a_test.go: imports image"}},
		{"sideways", "Layers", files{"fs/a.go": code("fs", Module+"/transfer")}, []string{"fs/a.go: imports transfer, which is beside"}},
		{"leaves", "Layers", files{"blockstore/a.go": code("blockstore", Module+"/crypto")}, []string{"blockstore/a.go: imports crypto, which is beside"}},
		{"own package in a test", "Layers", files{"fs/a_test.go": code("fs_test", Module+"/fs")}, nil},
		{"contract in a test", "Layers", files{"image/a_test.go": code("image_test", Module+"/internal/imagetest")}, nil},
		{"contract in code", "Layers", files{"fs/a.go": code("fs", Module+"/internal/imagetest")}, []string{"fs/a.go: imports internal/imagetest, which is for tests"}},
		{"test packages together", "Layers", files{"internal/imagetest/a.go": code("imagetest", Module+"/fs/powercut")}, nil},
		{"power cut in a test", "Layers", files{"internal/crashtest/a_test.go": code("crashtest", Module+"/fs/powercut")}, nil},
		{"power cut in code", "Layers", files{"internal/daemon/a.go": code("daemon", Module+"/fs/powercut")}, []string{"internal/daemon/a.go: imports fs/powercut, which is for tests"}},
		{"new folder", "Layers", files{"util/a.go": code("util")}, []string{"util: not in the drawing"}},
		{"root", "Layers", files{"a.go": code("sealdisk")}, []string{".: not in the drawing"}},
		{"import of a new folder", "Layers", files{"fs/a.go": code("fs", Module+"/util")}, []string{"fs/a.go: imports util, which is not"}},
		{"fuse at home", "Layers", files{"fs/a.go": code("fs", fuse)}, nil},
		{"fuse", "Layers", files{"internal/daemon/a.go": code("daemon", fuse)}, []string{"internal/daemon/a.go: imports github.com/hanwen"}},
		{"badger at home", "Layers", files{"blockstore/a.go": code("blockstore", badger)}, nil},
		{"badger in a test", "Layers", files{"image/a_test.go": code("image", badger)}, []string{"image/a_test.go: imports github.com/dgraph-io"}},
		{"cli at home", "Layers", files{"cmd/sealdisk/a.go": code("main", cli)}, nil},
		{"cli", "Layers", files{"internal/daemon/a.go": code("daemon", cli)}, []string{"internal/daemon/a.go: imports github.com/urfave"}},

		{"doc", "Docs", files{"fs/doc.go": "// Package fs is.\npackage fs\n", "fs/a.go": code("fs")}, nil},
		{"no doc.go", "Docs", files{"fs/a.go": code("fs")}, []string{"fs: no doc.go"}},
		{"silent doc.go", "Docs", files{"fs/doc.go": code("fs")}, []string{"fs: no doc.go"}},
		{"doc elsewhere", "Docs", files{"fs/doc.go": "// Package fs is.\npackage fs\n", "fs/a.go": "// Package fs is.\npackage fs\n"}, []string{"fs/a.go: the package comment"}},

		{"todo", "Unfinished", files{"fs/a.go": code("fs") + "// TODO: all\n"}, []string{"fs/a.go:2: says TODO"}},
		{"fixme in a block", "Unfinished", files{"fs/a.go": code("fs") + "/* a\nFIXME */\n"}, []string{"fs/a.go:2: says FIXME"}},
		{"todo in a string", "Unfinished", files{"fs/a.go": code("fs") + "var s = \"TODO\"\n"}, nil},
		{"todo in a test", "Unfinished", files{"fs/a_test.go": code("fs") + "// TODO\n"}, nil},

		{"skip", "Tests", files{"fs/a_test.go": code("fs") + "func f() { t.Skip() }\n"}, []string{"fs/a_test.go:2: a test skips"}},
		{"skip with text", "Tests", files{"fs/a_test.go": code("fs") + "func f() { b.Skipf(s) }\n"}, []string{"fs/a_test.go:2: a test skips"}},
		{"sleep", "Tests", files{"fs/a_test.go": code("fs") + "func f() { time.Sleep(1) }\n"}, []string{"fs/a_test.go:2: a test sleeps"}},
		{"sleep in a bubble", "Tests", files{"fs/a_test.go": code("fs") + "func f() { synctest.Test(t, func() { time.Sleep(1) }) }\n"}, nil},
		{"sleep in code", "Tests", files{"fs/a.go": code("fs") + "func f() { time.Sleep(1) }\n"}, nil},

		{"seeds", "Seeds", files{"fs/a_test.go": code("fs") + "func FuzzA() {}\n", "fs/testdata/fuzz/FuzzA/1": ""}, nil},
		{"no seeds", "Seeds", files{"fs/a_test.go": code("fs") + "func FuzzA() {}\n", "fs/testdata/fuzz/FuzzB/1": ""}, []string{"fs/a_test.go:2: no seeds"}},
		{"seeds of a longer name", "Seeds", files{"fs/a_test.go": code("fs") + "func FuzzA() {}\n", "fs/testdata/fuzz/FuzzAB/1": ""}, []string{"fs/a_test.go:2: no seeds"}},

		{"machine path", "MachinePaths", files{"docs/a.md": "see\n`/wo" + "rk/main`\n"}, []string{"docs/a.md:2: names"}},
		{"machine path in code", "MachinePaths", files{"fs/a.go": code("fs") + "const p = \"/wo" + "rk/x\"\n"}, []string{"fs/a.go:2: names"}},
		{"a folder called work", "MachinePaths", files{"docs/a.md": "$dir/wo" + "rk/x and a/wo" + "rk/b\n"}, nil},
	} {
		t.Run(tt.check+"/"+tt.name, func(t *testing.T) {
			got := checks[tt.check](load(t, tt.files))
			if !slices.EqualFunc(got, tt.want, strings.HasPrefix) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func load(t *testing.T, files map[string]string) *Tree {
	t.Helper()
	fsys := fstest.MapFS{}
	for name, content := range files {
		fsys[name] = &fstest.MapFile{Data: []byte(content)}
	}
	tree, err := Load(fsys)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func TestLoad(t *testing.T) {
	tree := load(t, map[string]string{
		"a/a.go": code("a", "os"), "a/testdata/x.go": "not Go", "build/b.go": "not Go", ".git/c.go": "not Go", "d.md": "",
	})
	want := []string{"a/a.go", "a/testdata/x.go", "d.md"}
	if !slices.Equal(tree.Paths, want) {
		t.Errorf("paths: got %q, want %q", tree.Paths, want)
	}
	if len(tree.Files) != 1 || len(tree.Files["a"]) != 1 || !slices.Equal(tree.Files["a"][0].Imports, []string{"os"}) {
		t.Errorf("files: got %v, want a/a.go alone, importing os", tree.Files)
	}
	if tree := load(t, map[string]string{".git": "gitdir: elsewhere"}); len(tree.Paths) != 0 {
		t.Errorf("paths of a worktree: got %q, want none", tree.Paths)
	}
	if _, err := Load(fstest.MapFS{"a/a.go": &fstest.MapFile{Data: []byte("not Go")}}); err == nil {
		t.Error("a file that is no Go was accepted")
	}
}
