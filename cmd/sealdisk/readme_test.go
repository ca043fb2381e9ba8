package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestReadme types the session of README.md and compares what comes out.
func TestReadme(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "```console\n")
	session, _, ok := strings.Cut(rest, "```")
	if !ok || !strings.Contains(session, "$ sealdisk init") {
		t.Fatal("README.md has no session")
	}
	dir := t.TempDir()
	t.Cleanup(func() { cutMounts(t, dir) })
	// One shell runs it all, as a user's does; a line of its own parts the outputs.
	const mark = "=== next ==="
	var script strings.Builder
	var commands, want []string
	for line := range strings.Lines(session) {
		line = strings.TrimSuffix(line, "\n")
		if c, ok := strings.CutPrefix(line, "$ "); ok {
			script.WriteString(c + "\nstatus=$?; echo '" + mark + "'; [ $status = 0 ] || exit $status\n")
			commands, want = append(commands, c), append(want, "")
			continue
		}
		want[len(want)-1] += line + "\n"
	}
	cmd := exec.Command("bash", "-c", script.String())
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH="+commandDir(t, dir)+":/usr/sbin:"+os.Getenv("PATH"), "TZ=UTC")
	out, err := cmd.Output()
	if err != nil {
		t.Errorf("session: %v\n%s", err, stderrOf(err))
	}
	got := strings.Split(string(out), mark+"\n")
	for i, c := range commands {
		if i >= len(got) {
			t.Fatalf("%s: the session ended before it", c)
		}
		pattern := strings.ReplaceAll(regexp.QuoteMeta(want[i]), "…", "(?s:.*)")
		if !regexp.MustCompile("^" + pattern + "$").MatchString(got[i]) {
			t.Errorf("$ %s\ngot:\n%swant:\n%s", c, got[i], want[i])
		}
	}
}

func stderrOf(err error) []byte {
	if exit, ok := err.(*exec.ExitError); ok {
		return exit.Stderr
	}
	return nil
}

// commandDir makes a folder in which this test binary is the sealdisk command.
func commandDir(t *testing.T, dir string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(bin, "sealdisk")); err != nil {
		t.Fatal(err)
	}
	return bin
}
