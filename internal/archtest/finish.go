package archtest

import (
	"fmt"
	"go/ast"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
)

// unfinished matches the words by which code says that it is not done.
var unfinished = regexp.MustCompile(`\b(TODO|FIXME|XXX|HACK)\b`)

// machinePath matches an absolute path into the folder where this code happens to be written.
var machinePath = regexp.MustCompile(`(^|[^\w.\-/])/w[o]rk/`)

// Unfinished checks that no comment outside tests says that something is left to do.
func Unfinished(t *Tree) (faults []string) {
	for _, dir := range sortedKeys(t.Files) {
		for _, f := range t.Files[dir] {
			if f.Test() {
				continue
			}
			for _, group := range f.Syntax.Comments {
				for _, c := range group.List {
					if word := unfinished.FindString(c.Text); word != "" {
						faults = append(faults, fmt.Sprintf("%s: says %s", f.at(c.Pos()), word))
					}
				}
			}
		}
	}
	return faults
}

// Tests checks that no test skips itself or sleeps. Inside synctest.Test time is not real and a
// sleep is exact, so it is allowed there.
func Tests(t *Tree) (faults []string) {
	for _, dir := range sortedKeys(t.Files) {
		for _, f := range t.Files[dir] {
			if !f.Test() {
				continue
			}
			ast.Inspect(f.Syntax, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				switch x, name := selector(call); {
				case x == "synctest" && name == "Test":
					return false
				case x == "time" && name == "Sleep":
					faults = append(faults, f.at(n.Pos())+": a test sleeps")
				case slices.Contains([]string{"t", "b", "f", "tb"}, x) && strings.HasPrefix(name, "Skip") && name != "Skipped":
					faults = append(faults, f.at(n.Pos())+": a test skips itself")
				}
				return true
			})
		}
	}
	return faults
}

// selector returns x and name of a call x.name(…), empty for any other call.
func selector(call *ast.CallExpr) (x, name string) {
	sel, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return "", ""
	}
	id, ok := sel.X.(*ast.Ident)
	if !ok {
		return "", ""
	}
	return id.Name, sel.Sel.Name
}

// Seeds checks that each fuzz target has seeds in the folder where the go command looks for them: a
// folder that was moved or misspelt would otherwise go unnoticed.
func Seeds(t *Tree) (faults []string) {
	for _, dir := range sortedKeys(t.Files) {
		for _, f := range t.Files[dir] {
			for _, decl := range f.Syntax.Decls {
				fn, ok := decl.(*ast.FuncDecl)
				if !ok || !f.Test() || fn.Recv != nil || !strings.HasPrefix(fn.Name.Name, "Fuzz") {
					continue
				}
				seeds := path.Join(dir, "testdata/fuzz", fn.Name.Name)
				if !slices.ContainsFunc(t.Paths, func(p string) bool { return path.Dir(p) == seeds }) {
					faults = append(faults, fmt.Sprintf("%s: no seeds in %s", f.at(fn.Pos()), seeds))
				}
			}
		}
	}
	return faults
}

// MachinePaths checks that no file names a path of the machine on which it was written.
func MachinePaths(t *Tree) (faults []string) {
	for _, name := range t.Paths {
		content, err := fs.ReadFile(t.fsys, name)
		if err != nil {
			faults = append(faults, fmt.Sprintf("%s: %v", name, err))
			continue
		}
		for i, line := range strings.Split(string(content), "\n") {
			if machinePath.MatchString(line) {
				faults = append(faults, fmt.Sprintf("%s:%d: names a path of one machine", name, i+1))
			}
		}
	}
	return faults
}
