package report

import (
	"fmt"
	"strings"
)

// A Profile says where the processor time of sealdisk went in one measurement.
type Profile struct {
	Machine float64            // processors that were busy, everything on the machine counted
	Server  float64            // those of sealdisk's process, with its time in the kernel
	Parts   map[string]float64 // shares of the latter, by names of parts; their sum is 1
}

// parts are the columns, and the first piece of a function's name that is found decides.
var parts = []struct {
	name   string
	pieces []string
}{
	{"hash", []string{"sha256"}},
	{"seal, open", []string{"crypto/internal", "crypto/cipher", "crypto/aes", "crypto/subtle", "golang.org/x/crypto"}},
	{"compress", []string{"klauspost/compress"}},
	{"copies and page faults", []string{"runtime.memmove", "runtime.memclr", "runtime.memequal"}},
	{"system calls", []string{"runtime/syscall", "syscall.Syscall", "syscall.RawSyscall", "runtime.futex", "runtime.epoll", "runtime.madvise"}},
	{"checksums", []string{"hash/crc32"}},
	{"Badger", []string{"dgraph-io"}},
	{"FUSE", []string{"hanwen/go-fuse"}},
	{"sealdisk", []string{"sealdisk/sealdisk"}},
	{"runtime", []string{"runtime."}},
	{rest, nil},
}

const rest = "rest"

// PartOf names the part that a function's own time counts for.
func PartOf(function string) string {
	for _, p := range parts {
		for _, piece := range p.pieces {
			if strings.Contains(function, piece) {
				return p.name
			}
		}
	}
	return rest
}

// Profile keeps where the time of a row went; a later one of the same row replaces it.
func (r *Results) Profile(row string, p Profile) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.profiles == nil {
		r.profiles = map[string]Profile{}
	}
	r.profiles[row] = p
}

// profiled are the rows with a profile, in the order of the page, with a name for each.
func profiled() (rows [][2]string) {
	for _, row := range []string{"import/none", "import/zstd", "export/none", "export/zstd"} {
		rows = append(rows, [2]string{row, strings.ReplaceAll(row, "/", ", ")})
	}
	for _, g := range Groups {
		switch g.ID {
		case "randwrite1", "randwrite32":
			rows = append(rows, [2]string{g.ID, g.Title})
		case "warm-small", "warm-large", "cold", "seqwrite", "fsync", "mixed":
			for _, row := range g.Rows {
				rows = append(rows, [2]string{row.ID, g.Title + ": " + row.What})
			}
		}
		if g.ID == "mixed" {
			rows = append(rows, [2]string{"mixed/snapshots", g.Title + ", with snapshots"})
		}
	}
	return rows
}

// writeProfiles prints a table of all profiles.
func (r *Results) writeProfiles(b *strings.Builder) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.profiles) == 0 {
		return
	}
	b.WriteString("## Where sealdisk's processor time goes\n\nTaken in the last round, from the measurements above. " +
		"Processors that are busy: all on the machine (fio and the kernel too), and those of sealdisk's process; then what the latter did, in percent of it. " +
		"A page fault in a mapped file counts as the copy that met it.\n\n| | machine | sealdisk |")
	for _, p := range parts {
		fmt.Fprintf(b, " %s |", p.name)
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(parts)+2) + "\n")
	for _, row := range profiled() {
		p, ok := r.profiles[row[0]]
		if !ok {
			continue
		}
		fmt.Fprintf(b, "| %s | %.2f | %.2f |", row[1], p.Machine, p.Server)
		for _, part := range parts {
			fmt.Fprintf(b, " %.0f |", 100*p.Parts[part.name])
		}
		b.WriteString("\n")
	}
	b.WriteString("\n")
}
