package page

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sealdisk/sealdisk/internal/measure"
)

// first is the set that the paper has, nil if it was not measured.
func (r *Results) first() *Set {
	if len(r.Sets) == 0 {
		return nil
	}
	return &r.Sets[0]
}

// summary is the page in one table.
func (r *Results) summary(w *writer) {
	s := r.first()
	if s == nil {
		return
	}
	verdict := "**missed**"
	if r.Met() {
		verdict = "met"
	}
	passed, all := r.tests()
	row := func(what string, paper, here float64, note string) []string {
		return []string{what, measure.Number(paper), measure.Number(here), measure.Number(paper / here), note}
	}
	rows := [][]string{
		row("mean total of the ten images in MB, loopback, ms", PaperMean, s.MeanTotal(Loopback), fmt.Sprintf("at least %d times less: %s", GoalFactor, verdict)),
		row("the same over 1 Gbit/s, ms", PaperMean, s.MeanTotal(Gigabit), ""),
		row("the same on loopback as three typed commands, ms", PaperMean, s.mean(func(im Image) float64 { return im.Commands }), "one round, with the start of three processes; the destination is no recipient yet, so the pull makes it one, by a commit at the source"),
		row("mean increase of a selection (SLA), loopback, percent", PaperIncrease, MeanIncrease(Minutes(s.MeanTotal(Loopback))), ""),
	}
	w.text("## In short")
	w.table([]string{"", "paper", "here", "times less", ""}, rows)
	w.text("Of %d tests that attack the seven security mechanisms %d passed. The run took %s.", all, passed, r.Took.Round(time.Second))
}

func (r *Results) tests() (passed, all int) {
	for _, c := range r.Challenges {
		for _, t := range c.Tests {
			all++
			if t.Passed {
				passed++
			}
		}
	}
	return passed, all
}

// images says what was measured.
func (r *Results) images(w *writer) {
	w.text("## The images")
	w.text("The ten machines of the paper's Table 1. Each is an ext4 file system, half of whose files are text (it compresses to about a quarter) and half random bytes; the rest is free. " +
		"They are made anew in each run and hold the same bytes each time: the digest is of each sector that is not zero, with its place.")
	for _, s := range r.Sets {
		w.text("%s", s.made())
		var rows [][]string
		for _, im := range s.Images {
			rows = append(rows, []string{im.name(s), fmt.Sprintf("%d", im.Size), megabytes(im.Data), percent(100 * float64(im.Data) / float64(im.Size)), megabytes(im.Sealed), "`" + im.Digest[:min(16, len(im.Digest))] + "`"})
		}
		w.table([]string{"image", "bytes", "data, MB", "of the size", "sealed, MB", "SHA-256"}, rows)
	}
}

// made says how the images of a set came about.
func (s Set) made() string {
	third := fmt.Sprintf("files for %.0f %% of the size", 100*s.Share/3)
	if s.Share == 1 {
		third = "files for a third of the size"
	}
	text := fmt.Sprintf("In %s (2^%d bytes): %s. Linked ones are imported from a loop device, where holes cannot be seen and all is read; ", s.Unit, log2(s.Bytes), third)
	if s.Bytes == 1<<20 {
		return text + "fixed ones from a file that has all its blocks."
	}
	text += "all are sparse files, since the disk has not the room for fixed ones."
	if s.Share < 1 {
		text += fmt.Sprintf(" A third of the size would be %.0f GB for the ten, and neither the disk of a small machine nor ten minutes allow that: they hold %g of it. `scripts/paper --share 1` makes them whole.",
			s.mean(func(im Image) float64 { return float64(im.Size) })*float64(len(s.Images))/3/float64(s.Bytes), s.Share)
	}
	return text
}

func log2(n int64) (k int) {
	for ; n > 1; n /= 2 {
		k++
	}
	return k
}

func (r *Results) segmentation(w *writer) {
	w.text("## Segmentation report")
	w.text("VDSS (`image/plan`) with blocks of 64 KiB: a block is planned if it holds data, and merged with the one before it if both belong to one file, or to one run of data, up to 1 MiB. " +
		"The paper's table has the same columns.")
	for _, s := range r.Sets {
		var rows [][]string
		for _, im := range s.Images {
			g := im.Segments
			rows = append(rows, []string{im.name(s), fmt.Sprint(g.Planned), fmt.Sprint(g.Merged), fmt.Sprint(g.Left), percent(g.Reduction)})
		}
		rows = append(rows, []string{"mean", measure.Number(s.mean(func(im Image) float64 { return float64(im.Segments.Planned) })),
			measure.Number(s.mean(func(im Image) float64 { return float64(im.Segments.Merged) })), measure.Number(s.mean(func(im Image) float64 { return float64(im.Segments.Left) })),
			percent(s.mean(func(im Image) float64 { return im.Segments.Reduction }))})
		w.table([]string{"image", "blocks planned", "merged", "segments left", "reduction"}, rows)
		w.plot(s.segments())
	}
}

// paths prints the phases of each image on each way, with the paper's beside if paper is set.
func (s Set) paths(w *writer, paper bool) {
	w.text("## Phases, images in %s", s.Unit)
	if paper {
		w.text("Milliseconds, medians of %d rounds, and in brackets what the paper has. The total is the median of the totals, and the range of all rounds.", s.Rounds)
	} else {
		w.text("Milliseconds, %s. The paper has no such images.", times(s.Rounds))
	}
	for way := range Ways {
		title := "Loopback"
		if way == Gigabit {
			title = "1 Gbit/s"
		}
		w.text("### %s", title)
		head := append([]string{"image"}, PhaseNames[:]...)
		head = append(head, "total")
		if paper {
			head = append(head, "times less than the paper")
		}
		if way == Gigabit {
			head = append(head, "the link alone")
		}
		var rows [][]string
		for _, im := range s.Images {
			rows = append(rows, s.pathRow(im, way, paper))
		}
		w.table(head, append(rows, s.meanRow(way, paper)))
	}
	w.plot(s.totals(paper))
	w.plot(s.phases(paper))
}

func times(n int) string {
	if n == 1 {
		return "one round"
	}
	return fmt.Sprintf("medians of %d rounds", n)
}

func beside(here, paper float64, shown bool) string {
	if shown {
		return measure.Number(here) + " (" + measure.Number(paper) + ")"
	}
	return measure.Number(here)
}

func (s Set) pathRow(im Image, way Way, paper bool) []string {
	row := []string{im.name(s)}
	theirs := im.Paper.List()
	for i, v := range im.Phase(way).List() {
		row = append(row, beside(v, theirs[i], paper))
	}
	cell := "**" + measure.Number(im.Total(way)) + "**"
	if paths := im.Paths[way]; len(paths) > 1 {
		var all []float64
		for _, p := range paths {
			all = append(all, p.Total())
		}
		cell += " [" + measure.Number(slices.Min(all)) + "–" + measure.Number(slices.Max(all)) + "]"
	}
	if paper {
		cell += " (" + measure.Number(im.Paper.Total()) + ")"
	}
	row = append(row, cell)
	if paper {
		row = append(row, measure.Number(im.Paper.Total()/im.Total(way)))
	}
	if way == Gigabit {
		row = append(row, measure.Number(LinkAlone(im.Wire)))
	}
	return row
}

// LinkAlone is how long 1 Gbit/s Ethernet needs for the bytes of a TCP connection, in ms: 941 Mbit/s of payload.
func LinkAlone(bytes int64) float64 { return float64(bytes) * 8 / 941e6 * 1000 }

func (s Set) meanRow(way Way, paper bool) []string {
	row := []string{"mean"}
	for i := range PhaseNames {
		row = append(row, beside(s.mean(func(im Image) float64 { return im.Phase(way).List()[i] }), s.mean(func(im Image) float64 { return im.Paper.List()[i] }), paper))
	}
	cell := "**" + measure.Number(s.MeanTotal(way)) + "**"
	if paper {
		cell += fmt.Sprintf(" (%.1f)", PaperMean)
	}
	row = append(row, cell)
	if paper {
		row = append(row, measure.Number(PaperMean/s.MeanTotal(way)))
	}
	if way == Gigabit {
		row = append(row, measure.Number(s.mean(func(im Image) float64 { return LinkAlone(im.Wire) })))
	}
	return row
}

// security is the seven challenges.
func (r *Results) security(w *writer) {
	if len(r.Challenges) == 0 {
		return
	}
	w.text("## The seven security challenges")
	w.text("What the paper asks of a framework, what answers it here, and the tests of this repository that attack it, run once more in this run.")
	w.WriteString("| challenge | mechanism | attacked by | result |\n|---|---|---|---|\n")
	for _, c := range r.Challenges {
		var tests, results []string
		for _, t := range c.Tests {
			tests = append(tests, fmt.Sprintf("`%s` %s: %s", t.Package, t.Name, t.Attack))
			result := fmt.Sprintf("passed, %.1f s", t.Took.Seconds())
			if !t.Passed {
				result = "**failed**: " + t.Problem
			}
			results = append(results, result)
		}
		fmt.Fprintf(w, "| %s | %s | %s | %s |\n", c.Name, c.Mechanism, strings.Join(tests, "<br>"), strings.Join(results, "<br>"))
	}
	w.WriteString("\n")
	w.text("A test that passes shows that the attack fails. What is not protected stands in [threat-model.md](threat-model.md).")
}
