package report

import "slices"

// Contenders.
const (
	Plain      = "plain file"
	Memory     = "memory server"
	Sealdisk   = "sealdisk"
	None       = "sealdisk, none"
	Zstd       = "sealdisk, zstd"
	Snapshots  = "sealdisk, snapshots"
	Gocryptfs  = "gocryptfs"
	Restic     = "restic"
	ResticNone = "restic, no compression"
	LUKSQcow2  = "qemu, LUKS in qcow2"
	LUKSRaw    = "qemu, raw LUKS"
	OpenSSL    = "openssl ctr"
	Cp         = "cp"
)

// order is how tables list contenders.
var order = []string{Sealdisk, None, Zstd, Snapshots, Memory, Plain, Cp, Gocryptfs, LUKSQcow2, LUKSRaw, ResticNone, Restic, OpenSSL}

// A Row is one thing that is measured.
type Row struct {
	ID        string // group/name
	What      string
	Unit      string
	Reference string // the contender that ratios are to; "" for none
}

// A Group is the rows of one table.
type Group struct {
	ID, Title, Text string
	Rows            []Row
}

const perSecond, mb = "/s", "MB/s"

func reads(group, reference string) []Row {
	return []Row{
		{group + "/rand1", "4k random read qd1", perSecond, reference},
		{group + "/rand32", "4k random read qd32", perSecond, reference},
		{group + "/seq1", "1M sequential read qd1", mb, reference},
		{group + "/seq8", "1M sequential read qd8", mb, reference},
	}
}

func randwrites(group string) []Row {
	return []Row{
		{group + "/first", "first 10 s", perSecond, Memory},
		{group + "/sustained", "sustained", perSecond, Gocryptfs},
		{group + "/drained", "until drained", perSecond, Gocryptfs},
		{group + "/drain", "the drain", "s", ""},
		{group + "/device", "device bytes / guest bytes", "×", ""},
	}
}

// Groups is every table in the order of the page.
var Groups = []Group{
	{"import", "Import of the image", "Megabytes of allocated data in a second, until all of it is on the device; and what it then occupies. Whatever iter-time says, QEMU takes seconds to make a LUKS header, however little data follows: the second column is without the time of a qemu-img create in the same round. Targets are of the first.", []Row{
		{"import/rate", "import", mb, LUKSQcow2}, {"import/data", "the same, LUKS headers not counted", mb, LUKSQcow2}, {"import/stored", "stored", "MB", ""},
	}},
	{"export", "Export to a raw file", "", []Row{{"export/rate", "export", mb, LUKSQcow2}}},
	{"warm-small", "Mounted, O_DIRECT, warm, a working set that fits the cache", "", reads("warm-small", Memory)},
	{"warm-large", "Mounted, O_DIRECT, warm, a working set larger than the cache", "", reads("warm-large", Memory)},
	{"cold", "Mounted, O_DIRECT, cold", "The page cache dropped and the server started anew before each.", []Row{
		{"cold/seq1", "1M sequential read qd1", mb, Plain}, {"cold/rand1", "4k random read qd1", perSecond, Plain},
	}},
	{"seqwrite", "1M sequential write into an empty disk, with a final fsync", "", []Row{{"seqwrite/rate", "1M write qd4", mb, Gocryptfs}}},
	{"randwrite1", "4k random write qd1 over the filled disk", "Drained: unmounted and synced.", randwrites("randwrite1")},
	{"randwrite32", "4k random write qd32 over the filled disk", "Drained: unmounted and synced.", randwrites("randwrite32")},
	{"fsync", "4k random write, each followed by fsync", "", []Row{
		{"fsync/1", "one writer", perSecond, Plain}, {"fsync/16", "sixteen writers", perSecond, Plain},
	}},
	{"mixed", "70/30 4k random at qd16, fsync every 64 writes", "With snapshots: one every few seconds meanwhile, by the command.", []Row{
		{"mixed/rate", "reads and writes", perSecond, Sealdisk},
		{"mixed/read99", "read p99", "ms", Sealdisk}, {"mixed/write99", "write p99", "ms", Sealdisk},
	}},
	{"memory", "Memory", "The largest resident set (VmHWM) of the process in any round, the pages of its mapped files with it.", []Row{
		{"memory/import", "import", "MiB", ""}, {"memory/export", "export", "MiB", ""},
		{"memory/reads", "warm reads", "MiB", ""}, {"memory/cold", "cold reads", "MiB", ""},
		{"memory/seqwrite", "sequential write", "MiB", ""}, {"memory/randwrite", "random write", "MiB", ""},
		{"memory/fsync", "write + fsync", "MiB", ""}, {"memory/mixed", "mixed", "MiB", ""}, {"memory/huge", "1 TiB", "MiB", ""},
	}},
	{"huge", "A sparse image of 1 TiB", "Each as a command, with the start of its process. The first read is 4 KiB of data after the page cache was dropped.", []Row{
		{"huge/import", "import", "ms", ""}, {"huge/mount", "mount", "ms", ""}, {"huge/read", "first read", "ms", ""},
		{"huge/snapshot", "snapshot", "ms", ""}, {"huge/umount", "unmount", "ms", ""},
	}},
	{"growth", "Growth", "Import (none) of incompressible images of three sizes, the second and third twice and four times the first.", []Row{
		{"growth/time1", "time, 1", "s", ""}, {"growth/time2", "time, 2", "s", ""}, {"growth/time4", "time, 4", "s", ""},
		{"growth/size1", "store, 1", "MiB", ""}, {"growth/size2", "store, 2", "MiB", ""}, {"growth/size4", "store, 4", "MiB", ""},
	}},
}

// A Goal bounds the median of one cell by Factor times another's, or by Factor itself if RefContender is "".
type Goal struct {
	What, Target         string
	Row, Contender       string
	AtMost               bool
	Factor               float64
	RefRow, RefContender string
}

func above(what, target, row, contender string, factor float64, reference string) Goal {
	return Goal{What: what, Target: target, Row: row, Contender: contender, Factor: factor, RefRow: row, RefContender: reference}
}

func below(what, target, row, contender string, bound float64) Goal {
	return Goal{What: what, Target: target, Row: row, Contender: contender, AtMost: true, Factor: bound}
}

// Goals is every target, in the order of the page.
var Goals = slices.Concat(transferGoals(), readGoals(), writeGoals(), restGoals())

func transferGoals() []Goal {
	const row = "import/rate"
	return []Goal{
		above("import, none", "≥ 3 × qemu-img to LUKS in qcow2", row, None, 3, LUKSQcow2),
		above("import, none", "faster than restic without compression", row, None, 1, ResticNone),
		above("import, none", "faster than cp into gocryptfs", row, None, 1, Gocryptfs),
		above("import, zstd", "≥ 1.5 × qemu-img to LUKS in qcow2", row, Zstd, 1.5, LUKSQcow2),
		above("import, zstd", "faster than restic", row, Zstd, 1, Restic),
		above("import, zstd", "faster than cp into gocryptfs", row, Zstd, 1, Gocryptfs),
		above("export, none", "≥ 2.5 × qemu-img from LUKS in qcow2", "export/rate", None, 2.5, LUKSQcow2),
		above("export, zstd", "≥ 2.5 × qemu-img from LUKS in qcow2", "export/rate", Zstd, 2.5, LUKSQcow2),
	}
}

func readGoals() (goals []Goal) {
	for _, set := range []struct{ group, name string }{{"warm-small", "warm"}, {"warm-large", "warm, set larger than the cache"}} {
		for _, r := range reads(set.group, Memory) {
			goals = append(goals, above(r.What+", "+set.name, "≥ 0.9 × memory server", r.ID, Sealdisk, 0.9, Memory))
		}
	}
	for _, r := range []Row{{ID: "cold/seq1", What: "1M sequential read, cold"}, {ID: "cold/rand1", What: "4k random read qd1, cold"}} {
		goals = append(goals,
			above(r.What, "≥ 2 × gocryptfs", r.ID, Sealdisk, 2, Gocryptfs),
			above(r.What, "≥ 0.5 × plain file, O_DIRECT", r.ID, Sealdisk, 0.5, Plain))
	}
	return goals
}

func writeGoals() []Goal {
	goals := []Goal{above("1M sequential write + fsync", "≥ 1.2 × gocryptfs", "seqwrite/rate", Sealdisk, 1.2, Gocryptfs)}
	for _, w := range []struct{ group, what string }{{"randwrite1", "4k random write qd1"}, {"randwrite32", "4k random write qd32"}} {
		goals = append(goals,
			above(w.what+", first 10 s", "≥ 0.9 × memory server", w.group+"/first", Sealdisk, 0.9, Memory),
			above(w.what+", sustained", "≥ 2 × gocryptfs", w.group+"/sustained", Sealdisk, 2, Gocryptfs),
			below(w.what+", device bytes", "≤ 4 × guest bytes", w.group+"/device", Sealdisk, 4))
	}
	return append(goals,
		above("4k write + fsync, one writer", "≥ 0.8 × plain file", "fsync/1", Sealdisk, 0.8, Plain),
		above("4k write + fsync, sixteen writers", "≥ 0.8 × plain file", "fsync/16", Sealdisk, 0.8, Plain))
}

func restGoals() (goals []Goal) {
	for _, r := range []struct{ id, what string }{{"mixed/read99", "read p99"}, {"mixed/write99", "write p99"}} {
		goals = append(goals, Goal{"mixed load with snapshots, " + r.what, "≤ 3 × without", r.id, Snapshots, true, 3, r.id, Sealdisk})
	}
	for _, g := range Groups {
		for _, r := range g.Rows {
			if g.ID != "memory" {
				continue
			}
			contender := Sealdisk
			switch r.ID {
			case "memory/import", "memory/export":
				contender = Zstd
			case "memory/mixed":
				contender = Snapshots
			}
			goals = append(goals, below("memory, "+r.What, "≤ 700 MiB", r.ID, contender, 700))
		}
	}
	for _, h := range []struct {
		id, what, target string
		bound            float64
	}{
		{"huge/mount", "mount", "< 1 s", 1000}, {"huge/umount", "unmount", "< 1 s", 1000},
		{"huge/snapshot", "snapshot", "< 100 ms", 100}, {"huge/read", "first read", "< 10 ms", 10},
	} {
		goals = append(goals, below("1 TiB sparse, "+h.what, h.target, h.id, Sealdisk, h.bound))
	}
	return append(goals,
		Goal{"growth, import time of 4 × the data", "≤ 4.6 × (linear)", "growth/time4", None, true, 4.6, "growth/time1", None},
		Goal{"growth, store of 4 × the data", "≤ 4.2 × (linear)", "growth/size4", None, true, 4.2, "growth/size1", None})
}
