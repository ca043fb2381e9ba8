package archtest

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"strconv"
	"strings"
)

// Module is the import path of the repository's root.
const Module = "github.com/sealdisk/sealdisk"

// A File is one Go source file.
type File struct {
	Path    string   // slash-separated, from the repository's root
	Lines   int      // newlines in it
	Imports []string // import paths, in the order of the file
	Syntax  *ast.File
	fset    *token.FileSet
}

// Test reports whether only `go test` compiles the file.
func (f *File) Test() bool { return strings.HasSuffix(f.Path, "_test.go") }

// Dir returns the folder of the file, "." for the root.
func (f *File) Dir() string { return path.Dir(f.Path) }

// at names a place in the file.
func (f *File) at(pos token.Pos) string {
	return fmt.Sprintf("%s:%d", f.Path, f.fset.Position(pos).Line)
}

// Tree is the repository: its Go files by folder, and the paths of all its files.
type Tree struct {
	Files map[string][]*File
	Paths []string
	fsys  fs.FS
}

// Load reads every file below the root of fsys except version control and build output.
func Load(fsys fs.FS) (*Tree, error) {
	t := &Tree{Files: map[string][]*File{}, fsys: fsys}
	err := fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (name == ".git" || name == "build"):
			return fs.SkipDir
		case !d.Type().IsRegular(), name == ".git": // a file in a worktree
			return nil
		}
		t.Paths = append(t.Paths, name)
		if !strings.HasSuffix(name, ".go") || strings.Contains(name, "testdata/") {
			return nil
		}
		return t.add(name)
	})
	if err != nil {
		return nil, fmt.Errorf("archtest: read the repository: %w", err)
	}
	return t, nil
}

func (t *Tree) add(name string) error {
	src, err := fs.ReadFile(t.fsys, name)
	if err != nil {
		return err
	}
	fset := token.NewFileSet()
	syntax, err := parser.ParseFile(fset, name, src, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	f := &File{Path: name, Lines: strings.Count(string(src), "\n"), Syntax: syntax, fset: fset}
	for _, spec := range syntax.Imports {
		imported, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return err
		}
		f.Imports = append(f.Imports, imported)
	}
	t.Files[f.Dir()] = append(t.Files[f.Dir()], f)
	return nil
}
