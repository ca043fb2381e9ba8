package measure

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Fact is something that is to be known of a run.
type Fact struct{ What, Is string }

// Machine describes the machine, and the file system that has a folder.
func Machine(dir string) []Fact {
	kib, _ := strconv.ParseInt(strings.TrimSuffix(value("/proc/meminfo", "MemTotal:"), " kB"), 10, 64)
	return []Fact{
		{"machine", fmt.Sprintf("%d cores of %s, %.1f GiB", runtime.NumCPU(), value("/proc/cpuinfo", "model name"), float64(kib)/(1<<20))},
		{"load at the end", firstLine("/proc/loadavg")},
		{"kernel, system", "Linux " + firstLine("/proc/sys/kernel/osrelease") + ", " + value("/etc/os-release", "PRETTY_NAME=")},
		{"work folder", fileSystem(dir)},
	}
}

// value reads what a file has after a key at the beginning of a line.
func value(name, key string) string {
	text, _ := os.ReadFile(name)
	for line := range strings.Lines(string(text)) {
		if k, v, ok := strings.Cut(line, key); ok && strings.TrimRight(k, "\t ") == "" {
			return strings.Trim(strings.TrimSpace(strings.TrimLeft(strings.TrimSpace(v), ":")), `"`)
		}
	}
	return "unknown"
}

func fileSystem(dir string) string {
	out, err := exec.Command("findmnt", "-n", "-o", "FSTYPE,SOURCE,OPTIONS", "-T", dir).Output()
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(out)), " ")
}

func firstLine(name string) string {
	text, _ := os.ReadFile(name)
	line, _, _ := strings.Cut(string(text), "\n")
	return line
}

// Version is the first line that a program says of itself.
func Version(args ...string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
	line, _, _ := strings.Cut(string(out), "\n")
	if err != nil && line == "" {
		return "not installed"
	}
	return line
}

// Revision names what the working folder holds.
func (c Commands) Revision(ctx context.Context) string {
	rev, _, err := c.Run(ctx, nil, "git", "rev-parse", "--short=12", "HEAD")
	if err != nil {
		return "not from version control"
	}
	text := strings.TrimSpace(rev)
	if changed, _, err := c.Run(ctx, nil, "git", "status", "--porcelain", "--untracked-files=no"); err == nil && changed != "" {
		text += " with changes"
	}
	return text
}

// MountsBelow lists the mount points in a folder, the newest first.
func MountsBelow(dir string) (list []string) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			list = append(list, f[4])
		}
	}
	slices.Reverse(list)
	return list
}
