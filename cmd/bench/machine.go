package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealdisk/sealdisk/cmd/bench/report"
	"github.com/sealdisk/sealdisk/internal/measure"
)

// maxResident is the largest resident set of an ended process, in bytes.
func maxResident(p *os.ProcessState) int64 {
	if usage, ok := p.SysUsage().(*syscall.Rusage); ok {
		return usage.Maxrss * 1024
	}
	return 0
}

// resetPeak begins the count of a process's largest resident set anew.
func resetPeak(d *daemon) error {
	if d == nil {
		return nil
	}
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", d.PID()), []byte("5"), 0)
}

// notePeak keeps the largest resident set of a target's server.
func (b *bench) notePeak(row string, t target, contender string) error {
	d := t.Server()
	if d == nil || t.Name() == report.Memory {
		return nil
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.PID()))
	if err != nil {
		return err
	}
	kib, err := field(string(text), "VmHWM:")
	if err != nil {
		return err
	}
	b.results.Peak(row, contender, float64(kib)/1024)
	return nil
}

// field reads the number after a key at the beginning of a line.
func field(text, key string) (int64, error) {
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, key); ok {
			if f := strings.Fields(rest); len(f) > 0 {
				return strconv.ParseInt(f[0], 10, 64)
			}
		}
	}
	return 0, fmt.Errorf("no %s", key)
}

// deviceWritten is how many bytes the device below the folder has been given to write. It fails where
// the folder is on no single block device.
func (b *bench) deviceWritten() (int64, error) {
	var st unix.Stat_t
	if err := unix.Stat(b.dir, &st); err != nil {
		return 0, err
	}
	text, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/stat", unix.Major(st.Dev), unix.Minor(st.Dev)))
	if err != nil {
		return 0, err
	}
	return parseDeviceStat(string(text))
}

// parseDeviceStat gives the bytes written of /sys/block/…/stat: its seventh number, in 512 bytes.
func parseDeviceStat(text string) (int64, error) {
	f := strings.Fields(text)
	if len(f) < 7 {
		return 0, fmt.Errorf("device statistics %q", text)
	}
	n, err := strconv.ParseInt(f[6], 10, 64)
	return n * 512, err
}

// dropCaches makes the page cache cold.
func (b *bench) dropCaches() error {
	if err := b.sync(); err != nil {
		return err
	}
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
}

// facts describes the run, the machine and every program.
func (b *bench) facts(began time.Time) []report.Note {
	facts := []report.Note{{What: "run", Why: fmt.Sprintf("%s UTC, %d min, %d rounds", began.UTC().Format("2006-01-02 15:04"), int(time.Since(began).Minutes()), b.rounds)}}
	for _, f := range measure.Machine(filepath.Dir(b.dir)) {
		facts = append(facts, report.Note{What: f.What, Why: f.Is})
	}
	facts = append(facts, report.Note{What: "sealdisk", Why: b.revision + ", " + runtime.Version()})
	for _, p := range [][]string{
		{"fio", "--version"}, {"gocryptfs", "-version"}, {"restic", "version"}, {"qemu-img", "--version"},
		{"qemu-storage-daemon", "--version"}, {"openssl", "version"}, {"cp", "--version"}, {"mkfs.ext4", "-V"},
	} {
		facts = append(facts, report.Note{What: p[0], Why: measure.Version(p...)})
	}
	return append(facts, report.Note{What: "sizes", Why: b.sizes()}, report.Note{What: "settings", Why: settings})
}

func (b *bench) sizes() string {
	return fmt.Sprintf("image %d MiB, %d MiB of it files of /usr, %d MiB random; read disk %d MiB, small set %d MiB; written disk %d MiB; "+
		"reads and fsyncs %v each; random writes %v (sealdisk, gocryptfs), %v (memory server), %v (others), their opening %v; mixed %v, a snapshot every %v; growth from %d MiB",
		b.image/mib, b.usr/mib, b.noise/mib, b.readDisk/mib, b.smallSet/mib, b.writeDisk/mib,
		b.short, b.sustained, b.first, b.peer, b.first, b.mixed, b.betweenSnapshots, b.growth/mib)
}

const settings = "fio with O_DIRECT, libaio (psync with fsync), fresh random buffers; disks for fio hold random bytes; sealdisk with its defaults " +
	"(zstd, its own cache size) unless named; qemu-storage-daemon with its defaults (page cache, one thread), LUKS aes-xts, iter-time 200 ms; " +
	"gocryptfs AES-GCM, scrypt N 2¹²; warm: the set was read once before; transfers: the source is in the page cache, time until synced"
