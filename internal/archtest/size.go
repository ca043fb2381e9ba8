package archtest

import (
	"fmt"
	"go/ast"
	"path"
	"strings"
)

// Limits of STYLE: past them a file or a function holds more than one idea.
const (
	maxFileLines     = 500
	maxFunctionLines = 60
	maxTestLines     = 100 // a function of a test file: a table and its loop
	maxListLines     = 100 // a function of flatLists
	maxPackageFiles  = 14
)

// flatLists are the functions, as folder.Name, that only enumerate and may be longer for it.
var flatLists = map[string]bool{}

// Sizes checks the lengths of files and functions and the number of files of a package.
func Sizes(t *Tree) (faults []string) {
	for _, dir := range sortedKeys(t.Files) {
		code := 0
		for _, f := range t.Files[dir] {
			if !f.Test() {
				code++
			}
			if f.Lines > maxFileLines {
				faults = append(faults, fmt.Sprintf("%s: %d lines, more than %d", f.Path, f.Lines, maxFileLines))
			}
			faults = append(faults, longFunctions(f)...)
		}
		if code > maxPackageFiles {
			faults = append(faults, fmt.Sprintf("%s: %d files, more than %d", dir, code, maxPackageFiles))
		}
	}
	return faults
}

func longFunctions(f *File) (faults []string) {
	for _, decl := range f.Syntax.Decls {
		fn, ok := decl.(*ast.FuncDecl)
		if !ok {
			continue
		}
		limit := maxFunctionLines
		switch {
		case f.Test():
			limit = maxTestLines
		case flatLists[f.Dir()+"."+fn.Name.Name]:
			limit = maxListLines
		}
		lines := f.fset.Position(fn.End()).Line - f.fset.Position(fn.Pos()).Line + 1
		if lines > limit {
			faults = append(faults, fmt.Sprintf("%s: %s has %d lines, more than %d", f.at(fn.Pos()), fn.Name.Name, lines, limit))
		}
	}
	return faults
}

// Docs checks that each package has a doc.go with a package comment, and no other file has one.
func Docs(t *Tree) (faults []string) {
	for _, dir := range sortedKeys(t.Files) {
		found := false
		for _, f := range t.Files[dir] {
			isDoc := path.Base(f.Path) == "doc.go"
			switch has := f.Syntax.Doc != nil && strings.TrimSpace(f.Syntax.Doc.Text()) != ""; {
			case isDoc && has:
				found = true
			case !isDoc && !f.Test() && has:
				faults = append(faults, f.Path+": the package comment belongs in doc.go")
			}
		}
		if !found {
			faults = append(faults, dir+": no doc.go with a package comment")
		}
	}
	return faults
}
