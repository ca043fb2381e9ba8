package picture

import (
	"fmt"
	"io"
	"strings"
)

// Startup is a start-up list (docs/format.md §7).
type Startup struct {
	Name   string
	Size   int64 // of the disk, bytes
	Parent string
	Ranges []Range // in the order of first need
}

// Range is a part of the disk that a guest needed.
type Range struct {
	Offset int64  `json:"offset"` // bytes
	Length int64  `json:"length"` // bytes
	Burst  uint32 `json:"burst"`
	Ms     uint32 `json:"ms"` // after the image was opened
}

// Burst is what was needed without a pause.
type Burst struct {
	Number   uint32
	Ranges   []Range
	Bytes    int64
	From, To uint32 // ms
}

// Bursts groups the ranges.
func (s Startup) Bursts() (list []Burst) {
	for _, r := range s.Ranges {
		if n := len(list); n == 0 || list[n-1].Number != r.Burst {
			list = append(list, Burst{Number: r.Burst, From: r.Ms})
		}
		b := &list[len(list)-1]
		b.Ranges = append(b.Ranges, r)
		b.Bytes += r.Length
		b.To = max(b.To, r.Ms)
	}
	return list
}

// Dot writes the list as a graph: the image, its bursts in order, and what it descends from.
func (s Startup) Dot(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "digraph startup {\n  rankdir=LR;\n  node [shape=box, fontname=\"sans-serif\"];\n  image [label=%q];\n", s.Name)
	if s.Parent != "" {
		fmt.Fprintf(&b, "  parent [label=%q];\n  image -> parent [label=\"descends from\", style=dashed];\n", s.Parent)
	}
	before := "image"
	for i, burst := range s.Bursts() {
		fmt.Fprintf(&b, "  b%d [label=\"burst %d\\n%d ranges, %.1f MiB\\n%.1f s to %.1f s\"];\n  %s -> b%d;\n",
			i, burst.Number, len(burst.Ranges), mib(burst.Bytes), seconds(burst.From), seconds(burst.To), before, i)
		before = fmt.Sprintf("b%d", i)
	}
	b.WriteString("}\n")
	_, err := io.WriteString(w, b.String())
	return err
}

func mib(n int64) float64       { return float64(n) / (1 << 20) }
func seconds(ms uint32) float64 { return float64(ms) / 1000 }

// Size of the drawing, in pixels: the plane of time and disk, and what surrounds it.
const (
	width, height            = 900, 500
	left, right, top, bottom = 80, 20, 40, 50
	planeWidth, planeHeight  = width - left - right, height - top - bottom
	timeTicks, offsetTicks   = 10, 8
	leastWidth, leastHeight  = 3.0, 1.5
)

// SVG draws each range at its time and place on the disk.
func (s Startup) SVG(w io.Writer) error {
	var b strings.Builder
	end := uint32(1)
	for _, r := range s.Ranges {
		end = max(end, r.Ms)
	}
	size := max(s.Size, 1)
	x := func(ms float64) float64 { return left + ms/float64(end)*planeWidth }
	y := func(off float64) float64 { return top + off/float64(size)*planeHeight }
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", width, height, width, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="white"/>`+"\n", width, height)
	fmt.Fprintf(&b, `<text x="%d" y="24" font-size="15">%s: what a guest reads first (%d ranges, %.1f MiB)</text>`+"\n", left, escape(s.Name), len(s.Ranges), mib(s.bytes()))
	for i := 0; i <= timeTicks; i++ {
		ms := float64(end) * float64(i) / timeTicks
		fmt.Fprintf(&b, `<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="#ddd"/><text x="%.1f" y="%d" text-anchor="middle">%.1f</text>`+"\n",
			x(ms), top, x(ms), height-bottom, x(ms), height-bottom+18, ms/1000)
	}
	for i := 0; i <= offsetTicks; i++ {
		off := float64(size) * float64(i) / offsetTicks
		fmt.Fprintf(&b, `<line x1="%d" y1="%.1f" x2="%d" y2="%.1f" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%.0f</text>`+"\n",
			left, y(off), width-right, y(off), left-6, y(off)+4, off/(1<<20))
	}
	fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="middle">seconds after the image was opened</text>`+"\n", left+planeWidth/2, height-12)
	fmt.Fprintf(&b, `<text transform="translate(18 %d) rotate(-90)" text-anchor="middle">place on the disk, MiB</text>`+"\n", top+planeHeight/2)
	for _, r := range s.Ranges {
		fmt.Fprintf(&b, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s"/>`+"\n", x(float64(r.Ms)), y(float64(r.Offset)),
			leastWidth, max(leastHeight, float64(r.Length)/float64(size)*planeHeight), colours[r.Burst%uint32(len(colours))])
	}
	b.WriteString("</svg>\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// colours of bursts, one after the other.
var colours = []string{"#1b6ca8", "#d1495b", "#2e8b57", "#8d5fd3", "#b8860b"}

func (s Startup) bytes() (n int64) {
	for _, r := range s.Ranges {
		n += r.Length
	}
	return n
}

func escape(s string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(s)
}
