package page

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/sealdisk/sealdisk/internal/measure"
)

// Save writes the page, and its plots into a folder of its name.
func (r *Results) Save(file string) error {
	folder := strings.TrimSuffix(file, filepath.Ext(file))
	if folder == file {
		folder += ".plots"
	}
	if err := r.plots(folder); err != nil {
		return err
	}
	if err := os.WriteFile(file, r.markdown(filepath.Base(folder)), 0o666); err != nil {
		return fmt.Errorf("page: %w", err)
	}
	return nil
}

// writer prints Markdown.
type writer struct {
	bytes.Buffer
	plots string
}

func (w *writer) text(format string, args ...any) {
	fmt.Fprintf(w, format+"\n\n", args...)
}

// table prints a table whose first column is text and whose others are figures.
func (w *writer) table(head []string, rows [][]string) {
	fmt.Fprintf(w, "| %s |\n|---|%s\n", strings.Join(head, " | "), strings.Repeat("---:|", len(head)-1))
	for _, row := range rows {
		fmt.Fprintf(w, "| %s |\n", strings.Join(row, " | "))
	}
	w.WriteByte('\n')
}

func (w *writer) plot(c chart) { w.text("![%s](%s/%s)", c.title, w.plots, c.file) }

// markdown is the whole page.
func (r *Results) markdown(plots string) []byte {
	w := &writer{plots: plots}
	w.text("# Evaluation")
	w.text("Written by `scripts/paper` on %s; do not edit. The tables of \"An Automated VM Security Framework for Live Migration\" (A. Jyothi and B. Indira, 2019), "+
		"run on this implementation. All figures are of this run, but those that are called the paper's.", r.Date)
	for _, n := range r.Notes {
		w.text("**%s**", n)
	}
	r.summary(w)
	r.method(w)
	r.images(w)
	r.segmentation(w)
	for i, s := range r.Sets {
		s.paths(w, i == 0)
	}
	r.speeds(w)
	r.lazy(w)
	r.sla(w)
	r.security(w)
	w.text("## How, and on what")
	fmt.Fprintf(w, "| | |\n|---|---|\n")
	for _, f := range r.Facts {
		fmt.Fprintf(w, "| %s | %s |\n", f.What, strings.ReplaceAll(f.Is, "|", `\|`))
	}
	return w.Bytes()
}

func percent(v float64) string { return fmt.Sprintf("%.1f %%", v) }

// megabytes of bytes: 2²⁰, as the figures of the images.
func megabytes(n int64) string { return measure.Number(float64(n) / (1 << 20)) }

// name of an image in a table.
func (im Image) name(s Set) string { return fmt.Sprintf("%d %s %s", im.Figure, s.Unit, im.Kind()) }
