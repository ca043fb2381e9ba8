package format

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// deviceReadOnly returns nil if nothing can write the claimed device at path:
// the device itself is read-only, or all that claims it is read-only mounts.
func deviceReadOnly(path string) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	number := fmt.Sprintf("%d:%d", unix.Major(uint64(st.Rdev)), unix.Minor(uint64(st.Rdev)))
	if ro, err := os.ReadFile("/sys/dev/block/" + number + "/ro"); err == nil && strings.TrimSpace(string(ro)) == "1" {
		return nil
	}
	mounts, err := mountsOf(number)
	if err != nil {
		return err
	}
	if len(mounts) == 0 {
		return fmt.Errorf("device %s: %w: a partition of it is mounted, or it belongs to a volume", path, ErrInUse)
	}
	for _, m := range mounts {
		if !m.readOnly {
			return fmt.Errorf("device %s: %w: mounted read-write at %s; unmount it, remount it read-only or use a snapshot", path, ErrInUse, m.dir)
		}
	}
	return nil
}

// mount is one mount of a device, as /proc/self/mountinfo has it.
type mount struct {
	dir      string
	readOnly bool // of the file system, not only of this mount
}

// mountsOf lists the mounts of the device with that "major:minor".
func mountsOf(number string) ([]mount, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []mount
	s := bufio.NewScanner(f)
	for s.Scan() {
		left, right, ok := strings.Cut(s.Text(), " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 6 || len(r) < 3 || l[2] != number {
			continue
		}
		m := mount{dir: l[4]}
		for _, o := range strings.Split(r[2], ",") {
			m.readOnly = m.readOnly || o == "ro"
		}
		out = append(out, m)
	}
	return out, s.Err()
}
