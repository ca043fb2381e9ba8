package main

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the table of faults into docs/testing.md")

const (
	begins = "<!-- faults: written by go test ./internal/migratetest -update -->\n"
	ends   = "<!-- end of faults -->\n"
)

// table is what docs/testing.md says of the faults.
func faultTable() string {
	var b strings.Builder
	b.WriteString(begins)
	b.WriteString("| what comes in between | when | the guest | `sealdisk migrate` says | to go on |\n|---|---|---|---|---|\n")
	for _, x := range faults {
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", x.what, x.when, x.ends, x.says, x.next)
	}
	b.WriteString(ends)
	return b.String()
}

// TestTable: the page says of each fault what the program checks.
func TestTable(t *testing.T) {
	const page = "../../docs/testing.md"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), begins)
	_, after, ok2 := strings.Cut(rest, ends)
	if !ok || !ok2 {
		t.Fatalf("%s has no table of faults", page)
	}
	want := before + faultTable() + after
	if string(text) == want {
		return
	}
	if !*update {
		t.Fatalf("%s is not what the faults are: go test ./internal/migratetest -update", page)
	}
	if err := os.WriteFile(page, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestFaults: each fault says where the guest is, what is printed, and what is to be done.
func TestFaults(t *testing.T) {
	seen := map[string]bool{}
	for _, x := range faults {
		if seen[x.String()] {
			t.Errorf("%s is there twice", x)
		}
		seen[x.String()] = true
		if x.ends == "" || x.says == "" || x.next == "" || len(x.steps) == 0 || strings.ContainsAny(x.what+x.when+x.ends+x.says+x.next, "|\n") {
			t.Errorf("%s: not all is said of it", x)
		}
	}
}
