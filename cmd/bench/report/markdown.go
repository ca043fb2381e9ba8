package report

import (
	"fmt"
	"io"
	"strings"
)

// A Page is a report's frame around its tables.
type Page struct {
	Title string
	Lead  []string // paragraphs
	Facts []Note   // machine, versions, how it was run
	Plots string   // folder of the plots, relative to the page; "" for none
}

// Write prints the page as Markdown.
func (r *Results) Write(w io.Writer, p Page) error {
	var b strings.Builder
	fmt.Fprintf(&b, "# %s\n\n", p.Title)
	for _, text := range p.Lead {
		fmt.Fprintf(&b, "%s\n\n", text)
	}
	r.goals(&b)
	r.notes(&b)
	for _, g := range Groups {
		r.table(&b, g, p.Plots)
	}
	r.writeProfiles(&b)
	b.WriteString("## How, and on what\n\n| | |\n|---|---|\n")
	for _, f := range p.Facts {
		fmt.Fprintf(&b, "| %s | %s |\n", f.What, strings.ReplaceAll(f.Why, "|", "\\|"))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (r *Results) goals(b *strings.Builder) {
	met, missed, unknown := 0, 0, 0
	var table strings.Builder
	for _, g := range Goals {
		v := r.verdict(g)
		switch {
		case !v.known:
			unknown++
		case v.met:
			met++
		default:
			missed++
		}
		fmt.Fprintf(&table, "| %s | %s | %s | %s |\n", g.What, g.Target, v.measured, v)
	}
	fmt.Fprintf(b, "## Targets\n\n%d met, %d missed, %d not measured.\n\n", met, missed, unknown)
	b.WriteString("| what | target | measured | |\n|---|---|---|---|\n" + table.String() + "\n")
}

func (r *Results) notes(b *strings.Builder) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, list := range []struct {
		title string
		notes []Note
	}{{"Skipped", r.skipped}, {"Failed", r.failed}} {
		if len(list.notes) == 0 {
			continue
		}
		fmt.Fprintf(b, "## %s\n\n", list.title)
		for _, n := range list.notes {
			fmt.Fprintf(b, "- %s: %s\n", n.What, n.Why)
		}
		b.WriteString("\n")
	}
}

// contenders are those with a figure in the group.
func (r *Results) contenders(g Group) (list []string) {
	for _, c := range order {
		for _, row := range g.Rows {
			if _, ok := r.stat(row.ID, c); ok {
				list = append(list, c)
				break
			}
		}
	}
	return list
}

func (r *Results) table(b *strings.Builder, g Group, plots string) {
	list := r.contenders(g)
	if len(list) == 0 {
		return
	}
	fmt.Fprintf(b, "## %s\n\n", g.Title)
	if g.Text != "" {
		fmt.Fprintf(b, "%s\n\n", g.Text)
	}
	b.WriteString("| |")
	for _, row := range g.Rows {
		fmt.Fprintf(b, " %s, %s |", row.What, row.Unit)
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(g.Rows)) + "\n")
	for _, c := range list {
		fmt.Fprintf(b, "| %s |", c)
		for _, row := range g.Rows {
			fmt.Fprintf(b, " %s |", r.cell(row, c))
		}
		b.WriteString("\n")
	}
	b.WriteString("\n")
	if plots != "" && r.Plotted(g) {
		fmt.Fprintf(b, "![%s](%s/%s.svg)\n\n", g.Title, plots, g.ID)
	}
	if _, ok := r.curve(g.ID); plots != "" && ok {
		fmt.Fprintf(b, "![%s, over time](%s/%s-time.svg)\n\n", g.Title, plots, g.ID)
	}
}

// cell prints median, spread and the ratio to the row's reference.
func (r *Results) cell(row Row, contender string) string {
	s, ok := r.stat(row.ID, contender)
	if !ok {
		return "–"
	}
	text := "**" + number(s.median) + "**"
	if s.n > 1 {
		text += fmt.Sprintf(" (%s–%s)", number(s.low), number(s.high))
	}
	if reference, ok := r.stat(row.ID, row.Reference); ok && reference.median > 0 && contender != row.Reference {
		text += fmt.Sprintf(" %.2f×", s.median/reference.median)
	}
	return text
}
