package page

import (
	"fmt"
	"image/color"
	"math"
	"os"
	"path/filepath"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// chart is clusters of bars on a logarithmic axis: the figures of one chart lie up to three powers of ten apart.
type chart struct {
	file, title, x, y string
	names             []string // of the clusters
	series            []series
}

// series is one bar of each cluster; a value of 0 has none.
type series struct {
	name   string
	values []float64
	color  color.Color
}

// Colours mean the same on every chart.
var (
	ofPaper    = color.RGBA{120, 120, 120, 255}
	ofLoopback = color.RGBA{214, 39, 40, 255}
	ofGigabit  = color.RGBA{31, 119, 180, 255}
	ofLazy     = color.RGBA{44, 160, 44, 255}
	ofLighter  = color.RGBA{152, 205, 152, 255}
)

// plots draws every chart into a folder. It removes no other files there.
func (r *Results) plots(dir string) error {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return fmt.Errorf("page: plots: %w", err)
	}
	for _, c := range r.charts() {
		if err := c.draw(filepath.Join(dir, c.file)); err != nil {
			return fmt.Errorf("page: plot %s: %w", c.file, err)
		}
	}
	return nil
}

func (c chart) draw(file string) error {
	p := plot.New()
	p.Title.Text = c.title
	p.Title.Padding = vg.Points(6)
	p.X.Label.Text, p.Y.Label.Text = c.x, c.y
	p.Legend.Top, p.Legend.Left = true, true // at the left its text runs into nothing, whatever font shows it
	p.Legend.XOffs, p.Legend.Padding = vg.Points(12), vg.Points(1)
	const clusters = 520 // points of the page for all of them
	width := vg.Points(clusters / float64(len(c.names)*(len(c.series)+1)))
	for i, s := range c.series {
		b := &bars{values: s.values, color: s.color, width: width, shift: width * vg.Length(float64(i)-float64(len(c.series))/2)}
		p.Add(b)
		p.Legend.Add(s.name, b)
	}
	p.NominalX(c.names...)
	p.X.Min, p.X.Max = -0.6, float64(len(c.names))-0.4
	low, high := c.bounds()
	p.Y.Min, p.Y.Max = low, high
	p.Y.Scale = plot.LogScale{}
	p.Y.Tick.Marker = plot.LogTicks{Prec: -1}
	if len(c.names) > 12 {
		p.X.Tick.Label.Rotation = math.Pi / 3
		p.X.Tick.Label.XAlign, p.X.Tick.Label.YAlign = draw.XRight, draw.YCenter
	}
	return p.Save(9.5*vg.Inch, 4.5*vg.Inch, file)
}

// bounds are powers of ten around the values, with room above for the legend.
func (c chart) bounds() (low, high float64) {
	low, high = math.Inf(1), 0
	for _, s := range c.series {
		for _, v := range s.values {
			if v > 0 {
				low, high = min(low, v), max(high, v)
			}
		}
	}
	if high == 0 {
		return 0.1, 1
	}
	low = math.Pow(10, math.Floor(math.Log10(low*0.99)))
	top := math.Pow(10, math.Ceil(math.Log10(high)))
	room := math.Pow(top/low, 0.07*float64(len(c.series)))
	return low, max(top, high*room*1.2)
}

// bars is a plotter that draws from the foot of a logarithmic axis.
type bars struct {
	values       []float64
	color        color.Color
	width, shift vg.Length
}

var (
	_ plot.Plotter     = (*bars)(nil)
	_ plot.Thumbnailer = (*bars)(nil)
)

// Plot implements plot.Plotter.
func (b *bars) Plot(c draw.Canvas, p *plot.Plot) {
	x, y := p.Transforms(&c)
	for i, v := range b.values {
		if v > p.Y.Min {
			b.fill(&c, x(float64(i))+b.shift, y(p.Y.Min), x(float64(i))+b.shift+b.width, y(v))
		}
	}
}

// Thumbnail implements plot.Thumbnailer.
func (b *bars) Thumbnail(c *draw.Canvas) { b.fill(c, c.Min.X, c.Min.Y, c.Max.X, c.Max.Y) }

func (b *bars) fill(c *draw.Canvas, left, foot, right, head vg.Length) {
	c.FillPolygon(b.color, []vg.Point{{X: left, Y: foot}, {X: left, Y: head}, {X: right, Y: head}, {X: right, Y: foot}})
}
