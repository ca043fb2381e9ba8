package archtest

import (
	"path"
	"strings"
)

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
