package page

import (
	"fmt"
	"strings"
)

// charts is every chart of the page for which there are figures.
func (r *Results) charts() (list []chart) {
	for i, s := range r.Sets {
		list = append(list, s.totals(i == 0), s.phases(i == 0), s.segments(), s.starts())
	}
	if len(r.Sets) > 0 {
		list = append(list, slaChart(r.Sets[0]))
	}
	return list
}

// file names a chart of a set.
func (s Set) file(what string) string { return what + "-" + strings.ToLower(s.Unit) + ".svg" }

// names are the figures of the images.
func (s Set) names() (list []string) {
	for _, im := range s.Images {
		list = append(list, fmt.Sprintf("%d %s\n%s", im.Figure, s.Unit, im.Kind()))
	}
	return list
}

// values of each image.
func (s Set) values(f func(Image) float64) (list []float64) {
	for _, im := range s.Images {
		list = append(list, f(im))
	}
	return list
}

func total(w Way) func(Image) float64 { return func(im Image) float64 { return im.Total(w) } }

// totals beside the paper's, which are of images in MB.
func (s Set) totals(paper bool) chart {
	c := chart{
		file: s.file("totals"), title: "Total of a path, images in " + s.Unit, x: "image", y: "ms", names: s.names(),
		series: []series{
			{"sealdisk, loopback", s.values(total(Loopback)), ofLoopback},
			{"sealdisk, 1 Gbit/s", s.values(total(Gigabit)), ofGigabit},
		},
	}
	if paper {
		of := func(im Image) float64 { return im.Paper.Total() }
		c.series = append([]series{{"paper", s.values(of), ofPaper}}, c.series...)
	}
	return c
}

// phases is the mean of each.
func (s Set) phases(paper bool) chart {
	c := chart{file: s.file("phases"), title: "Phases, mean of the images in " + s.Unit, x: "phase", y: "ms", names: PhaseNames[:]}
	mean := func(f func(Image) Phases) (list []float64) {
		for i := range PhaseNames {
			list = append(list, s.mean(func(im Image) float64 { return f(im).List()[i] }))
		}
		return list
	}
	if paper {
		c.series = append(c.series, series{"paper", mean(func(im Image) Phases { return im.Paper }), ofPaper})
	}
	c.series = append(c.series,
		series{"sealdisk, loopback", mean(func(im Image) Phases { return im.Phase(Loopback) }), ofLoopback},
		series{"sealdisk, 1 Gbit/s", mean(func(im Image) Phases { return im.Phase(Gigabit) }), ofGigabit})
	return c
}

func (s Set) segments() chart {
	return chart{
		file: s.file("segments"), title: "Segmentation, images in " + s.Unit, x: "image", y: "number", names: s.names(),
		series: []series{
			{"blocks planned", s.values(func(im Image) float64 { return float64(im.Segments.Planned) }), ofPaper},
			{"segments left", s.values(func(im Image) float64 { return float64(im.Segments.Left) }), ofLoopback},
		},
	}
}

// starts compares a lazy pull with a whole one.
func (s Set) starts() chart {
	of := func(list func(Image) []Start, f func(Start) float64) []float64 {
		return s.values(func(im Image) float64 { return medianOf(list(im), f) })
	}
	eager := func(im Image) []Start { return im.Eager }
	lazy := func(im Image) []Start { return im.Lazy }
	first := func(t Start) float64 { return t.First }
	boot := func(t Start) float64 { return t.Boot }
	return chart{
		file: s.file("starts"), title: "Until an image can be used, over 1 Gbit/s, images in " + s.Unit, x: "image", y: "ms after the request", names: s.names(),
		series: []series{
			{"whole: first block", of(eager, first), ofGigabit},
			{"whole: boot list", of(eager, boot), ofPaper},
			{"lazy: first block", of(lazy, first), ofLazy},
			{"lazy: boot list", of(lazy, boot), ofLighter},
		},
	}
}

func slaChart(s Set) chart {
	c := chart{file: "sla.svg", title: "Increase of the selection time, images in " + s.Unit, x: "pair of policies", y: "percent"}
	increases := func(minutes float64) (list []float64) {
		for _, p := range Policies {
			list = append(list, p.Increase(minutes))
		}
		return list
	}
	for _, p := range Policies {
		c.names = append(c.names, p.Name)
	}
	c.series = []series{
		{"paper, 0.02 minutes", increases(PaperMinutes), ofPaper},
		{"sealdisk, loopback", increases(Minutes(s.MeanTotal(Loopback))), ofLoopback},
		{"sealdisk, 1 Gbit/s", increases(Minutes(s.MeanTotal(Gigabit))), ofGigabit},
	}
	return c
}
