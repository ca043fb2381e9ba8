package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sealdisk/sealdisk/cmd/paper/page"
)

func TestParseTests(t *testing.T) {
	got, err := parseTests(`{"Action":"start","Package":"p"}
{"Action":"run","Test":"TestA"}
{"Action":"output","Test":"TestA","Output":"x"}
{"Action":"pass","Test":"TestA/part","Elapsed":0.5}
{"Action":"pass","Test":"TestA","Elapsed":1.25}
{"Action":"fail","Test":"TestB","Elapsed":0}
{"Action":"fail","Package":"p","Elapsed":2}
`)
	want := map[string]verdict{"TestA/part": {"pass", 500 * time.Millisecond}, "TestA": {"pass", 1250 * time.Millisecond}, "TestB": {"fail", 0}}
	if err != nil || len(got) != len(want) {
		t.Fatalf("got %v, %v, want %v", got, err, want)
	}
	for name, v := range want {
		if got[name] != v {
			t.Errorf("%s: got %v, want %v", name, got[name], v)
		}
	}
	if got, err := parseTests("FAIL p [build failed]"); err == nil {
		t.Errorf("no JSON: got %v, want an error", got)
	}
}

func TestJudge(t *testing.T) {
	asked := []page.Challenge{{Tests: []page.Test{{Package: "p", Name: "TestA"}, {Package: "p", Name: "TestB"}, {Package: "q", Name: "TestA"}, {Package: "p", Name: "TestC"}}}}
	got := judge(asked, map[string]verdict{"p TestA": {"pass", time.Second}, "p TestB": {"fail", 0}, "p TestC": {"skip", 0}})
	want := []page.Test{
		{Package: "p", Name: "TestA", Passed: true, Took: time.Second}, {Package: "p", Name: "TestB", Problem: "fail"},
		{Package: "q", Name: "TestA", Problem: "no such test"}, {Package: "p", Name: "TestC", Problem: "skip"},
	}
	for i, w := range want {
		if got[0].Tests[i] != w {
			t.Errorf("got %+v, want %+v", got[0].Tests[i], w)
		}
	}
	if asked[0].Tests[0].Passed {
		t.Error("the list itself was changed")
	}
}

func TestGroups(t *testing.T) {
	var got []string
	for _, g := range groups([]page.Challenge{
		{Tests: []page.Test{{Package: "p", Name: "TestA"}, {Package: "q", Name: "TestS/one"}}},
		{Tests: []page.Test{{Package: "p", Name: "TestB"}, {Package: "p", Name: "TestA"}, {Package: "q", Name: "TestS/two"}}},
	}) {
		got = append(got, g.folder+" "+g.pattern())
	}
	if want := "p ^(TestA|TestB)$; q ^(TestS)$/^one$; q ^(TestS)$/^two$"; strings.Join(got, "; ") != want {
		t.Errorf("got %s, want %s", strings.Join(got, "; "), want)
	}
}

// TestChallenges: there are the paper's seven, and every test that they name is in the repository.
func TestChallenges(t *testing.T) {
	var names []string
	for _, c := range challenges {
		names = append(names, c.Name)
		if c.Mechanism == "" || len(c.Tests) == 0 {
			t.Errorf("%s: nothing answers it, or nothing attacks what does", c.Name)
		}
		for _, test := range c.Tests {
			if !inRepository(t, test) || test.Attack == "" {
				t.Errorf("%s: %s has no %s, or it does nothing", c.Name, test.Package, test.Name)
			}
		}
	}
	if got, want := strings.Join(names, ", "), "Access control, Authentication, Monitoring, Confidentiality, Secure communication, Integrity, Availability"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if inRepository(t, page.Test{Package: "transfer", Name: "TestNone"}) || inRepository(t, page.Test{Package: "cmd/sealdisk", Name: "TestSessions/none"}) {
		t.Error("a test is found that is not there")
	}
}

func inRepository(t *testing.T, test page.Test) bool {
	t.Helper()
	folder := filepath.Join("..", "..", filepath.FromSlash(test.Package))
	name, part, _ := strings.Cut(test.Name, "/")
	if part != "" {
		if _, err := os.Stat(filepath.Join(folder, "testdata", part+".txtar")); err != nil {
			return false
		}
	}
	files, err := filepath.Glob(filepath.Join(folder, "*_test.go"))
	check(t, err)
	for _, file := range files {
		text, err := os.ReadFile(file)
		check(t, err)
		if bytes.Contains(text, []byte("\nfunc "+name+"(t *testing.T)")) {
			return true
		}
	}
	return false
}
