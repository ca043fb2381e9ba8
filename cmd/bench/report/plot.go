package report

import (
	"fmt"
	"image/color"
	"os"
	"path/filepath"
	"slices"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
)

// colours are one for each contender in order, the same on every plot.
var colours = []color.RGBA{
	{214, 39, 40, 255}, {214, 39, 40, 255}, {255, 127, 14, 255}, {255, 152, 150, 255},
	{44, 160, 44, 255}, {90, 90, 90, 255}, {170, 170, 170, 255},
	{31, 119, 180, 255}, {148, 103, 189, 255}, {197, 176, 213, 255},
	{140, 86, 75, 255}, {196, 156, 148, 255}, {23, 190, 207, 255},
}

func colour(contender string) color.Color { return colours[slices.Index(order, contender)] }

// Plotted reports whether a group has a bar chart: one row of it has a reference with a figure.
func (r *Results) Plotted(g Group) bool { return len(r.plottedRows(g)) > 0 }

// plottedRows are the rows whose values can be drawn as multiples of their reference.
func (r *Results) plottedRows(g Group) (rows []Row) {
	for _, row := range g.Rows {
		if s, ok := r.stat(row.ID, row.Reference); ok && s.median > 0 {
			rows = append(rows, row)
		}
	}
	return rows
}

// curve gives the curves of a group by contender.
func (r *Results) curve(group string) (map[string][]Point, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	found := map[string][]Point{}
	for k, points := range r.curves {
		if k.row == group && len(points) > 0 {
			found[k.contender] = points
		}
	}
	return found, len(found) > 0
}

// Plot draws every group into dir as SVG files.
func (r *Results) Plot(dir string) error {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return fmt.Errorf("report: plots: %w", err)
	}
	for _, g := range Groups {
		if r.Plotted(g) {
			if err := r.bars(g, filepath.Join(dir, g.ID+".svg")); err != nil {
				return fmt.Errorf("report: plot %s: %w", g.ID, err)
			}
		}
		if curves, ok := r.curve(g.ID); ok {
			if err := lines(g, curves, filepath.Join(dir, g.ID+"-time.svg")); err != nil {
				return fmt.Errorf("report: plot %s: %w", g.ID, err)
			}
		}
	}
	return nil
}

// bars draws a group: for each row a cluster, in it for each contender a bar that is its median as a
// multiple of the row's reference. Spreads stand in the table.
func (r *Results) bars(g Group, file string) error {
	rows, list := r.plottedRows(g), r.contenders(g)
	p := plot.New()
	p.Title.Text = g.Title
	p.Y.Label.Text = "times the reference"
	p.Y.Min = 0
	p.Legend.Top = true
	const cluster = 420 // points of the page for all bars
	width := vg.Points(min(18, cluster/float64(len(rows)*(len(list)+1))))
	for i, c := range list {
		values := make(plotter.Values, len(rows))
		for j, row := range rows {
			if s, ok := r.stat(row.ID, c); ok {
				reference, _ := r.stat(row.ID, row.Reference)
				values[j] = s.median / reference.median
			}
		}
		bar, err := plotter.NewBarChart(values, width)
		if err != nil {
			return err
		}
		bar.Color = colour(c)
		bar.LineStyle.Width = 0
		bar.Offset = width * vg.Length(float64(i)-float64(len(list)-1)/2)
		p.Add(bar)
		p.Legend.Add(c, bar)
	}
	names := make([]string, len(rows))
	for j, row := range rows {
		names[j] = fmt.Sprintf("%s\n1 = %s\n%s", row.What, row.Reference, r.referenceText(row))
	}
	p.NominalX(names...)
	one := plotter.NewFunction(func(float64) float64 { return 1 })
	one.Color = color.Gray{Y: 90}
	one.Dashes = []vg.Length{vg.Points(3), vg.Points(3)}
	p.Add(one)
	p.X.Min, p.X.Max = -0.6, float64(len(rows))-0.4+0.35*float64(len(rows)) // at the right, room for the legend
	return p.Save(10*vg.Inch, 5*vg.Inch, file)
}

func (r *Results) referenceText(row Row) string {
	s, _ := r.stat(row.ID, row.Reference)
	return figure(s.median, row.Unit)
}

// lines draws rates over time.
func lines(g Group, curves map[string][]Point, file string) error {
	p := plot.New()
	p.Title.Text = g.Title + ", last round"
	p.X.Label.Text = "seconds"
	p.Y.Label.Text = "requests a second"
	p.Y.Min = 0
	p.Legend.Top = true
	for _, c := range order {
		points := make(plotter.XYs, len(curves[c]))
		if len(points) == 0 {
			continue
		}
		for j, pt := range curves[c] {
			points[j] = plotter.XY{X: pt.T, Y: pt.V}
		}
		line, err := plotter.NewLine(points)
		if err != nil {
			return err
		}
		line.Color = colour(c)
		line.Width = vg.Points(1.5)
		p.Add(line)
		p.Legend.Add(c, line)
	}
	p.X.Max *= 1.3 // room for the legend
	p.Y.Max *= 1.05
	return p.Save(10*vg.Inch, 4*vg.Inch, file)
}
