package page

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/sealdisk/sealdisk/internal/measure"
)

// table gives the head and the rows of a case.
func (c *Case) table() (rows [][]string) {
	head := []string{c.String()}
	for _, w := range c.Ways {
		head = append(head, w.Name)
	}
	rows = append(rows, head)
	for _, m := range metrics {
		row := []string{m.name}
		for _, w := range c.Ways {
			row = append(row, c.cell(w, m))
		}
		rows = append(rows, row)
	}
	return rows
}

// Text prints the tables for a terminal.
func (r *Results) Text(to io.Writer) error {
	for _, c := range r.Cases {
		t := tabwriter.NewWriter(to, 0, 0, 3, ' ', 0)
		for _, row := range c.table() {
			fmt.Fprintln(t, strings.Join(row, "\t"))
		}
		if err := t.Flush(); err != nil {
			return err
		}
		for _, line := range c.failures() {
			fmt.Fprintln(to, line)
		}
		if _, err := fmt.Fprintln(to); err != nil {
			return err
		}
	}
	for _, line := range r.verdicts() {
		fmt.Fprintln(to, strings.ReplaceAll(line, "**", ""))
	}
	return nil
}

// failures says of runs without figures why.
func (c *Case) failures() (list []string) {
	for _, w := range c.Ways {
		why := slices.Compact(slices.Sorted(slices.Values(w.Failed)))
		if len(why) > 0 {
			list = append(list, fmt.Sprintf("%s: %d of %d runs have no figures: %s.", w.Name, len(w.Failed), len(w.Failed)+len(w.Runs), strings.Join(why, "; ")))
		}
	}
	return list
}

// verdicts says of each case in which of the figures sealdisk is better and in which it is worse.
func (r *Results) verdicts() (list []string) {
	for _, c := range r.Cases {
		for _, name := range []string{Eager, Lazy} {
			w := c.way(name)
			better, compared := 0, 0
			var worse []string
			for _, m := range metrics {
				ratio, ok := c.ratio(w, m)
				if !ok {
					continue
				}
				compared++
				switch c.compare(w, m) {
				case -1:
					worse = append(worse, fmt.Sprintf("%s %.2f ×", m.name, ratio))
				case 1:
					better++
				}
			}
			if compared == 0 {
				continue
			}
			line := fmt.Sprintf("%v, %s: better in %d of %d figures", c, name, better, compared)
			if len(worse) > 0 {
				line += ", **worse** in " + strings.Join(worse, ", ")
			}
			if neither := compared - better - len(worse); neither > 0 {
				line += fmt.Sprintf(", neither in %d", neither)
			}
			list = append(list, line+".")
		}
	}
	return list
}

// reasons says why figures are worse that are, one line for all that have the same reason.
func (r *Results) reasons() (list []string) {
	names, where := map[string][]string{}, map[string][]string{}
	var order []string
	for _, m := range metrics {
		for _, c := range r.Cases {
			for _, name := range []string{Eager, Lazy} {
				if c.compare(c.way(name), m) >= 0 {
					continue
				}
				if len(names[m.slow]) == 0 {
					order = append(order, m.slow)
				}
				names[m.slow] = appendNew(names[m.slow], "*"+m.name+"*")
				where[m.slow] = appendNew(where[m.slow], fmt.Sprintf("%v, %s", c, name))
			}
		}
	}
	for _, why := range order {
		list = append(list, fmt.Sprintf("%s (%s): %s.", strings.Join(names[why], ", "), strings.Join(where[why], "; "), why))
	}
	return list
}

func appendNew(list []string, s string) []string {
	if slices.Contains(list, s) {
		return list
	}
	return append(list, s)
}

// Markdown is the whole page.
func (r *Results) Markdown() []byte {
	w := &bytes.Buffer{}
	text := func(format string, args ...any) { fmt.Fprintf(w, format+"\n\n", args...) }
	items := func(list []string) { text("- %s", strings.Join(list, "\n- ")) }
	text("# Migration beside QEMU's own")
	text("Written by `scripts/bench-migrate` on %s; do not edit. Medians (lowest–highest) of %d interleaved rounds, and × the median of QEMU's own way. All on one machine: its figures drift with its neighbours; the ratios of one run hold. The run took %v.", r.Date, r.Rounds, r.Took)
	text("## In short")
	text("A figure is called better, or worse, if each run of sealdisk is, than each of QEMU's, and the medians differ by more than 2 %%. With one round that is no more than one run beside another. Some figures tell nearly the same twice: they are not so many findings.")
	items(r.verdicts())
	for _, c := range r.Cases {
		text("## %v", c)
		for i, row := range c.table() {
			fmt.Fprintf(w, "| %s |\n", strings.Join(row, " | "))
			if i == 0 {
				fmt.Fprintf(w, "|---|%s\n", strings.Repeat("---:|", len(row)-1))
			}
		}
		w.WriteByte('\n')
		if f := c.failures(); len(f) > 0 {
			items(f)
		}
	}
	if list := r.reasons(); len(list) > 0 {
		text("## Where sealdisk is worse, and why, as far as known")
		text("The reasons follow from the design; no profile of these runs has shown them.")
		items(list)
	}
	text("## What is compared")
	text(compared, r.version(), float64(r.Disk)/1e6, float64(r.Data)/1e6)
	text(contenders)
	text("## What is measured")
	text(figured)
	text("## How, and on what")
	fmt.Fprintf(w, "| | |\n|---|---|\n")
	for _, f := range r.Facts {
		fmt.Fprintf(w, "| %s | %s |\n", f.What, strings.ReplaceAll(f.Is, "|", `\|`))
	}
	return w.Bytes()
}

// FactQEMU names the fact that has QEMU's version.
const FactQEMU = "QEMU"

func (r *Results) version() string {
	i := slices.IndexFunc(r.Facts, func(f measure.Fact) bool { return f.What == FactQEMU })
	if i < 0 {
		return ""
	}
	version, _, _ := strings.Cut(strings.TrimPrefix(r.Facts[i].Is, "QEMU emulator version "), " ")
	return version
}
