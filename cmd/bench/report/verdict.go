package report

import "fmt"

// A verdict is a goal beside its figures.
type verdict struct {
	measured string // the ratio or the figure, and what it is made of
	known    bool   // both sides have figures
	met      bool
}

func (r *Results) verdict(g Goal) verdict {
	got, ok := r.stat(g.Row, g.Contender)
	if !ok {
		return verdict{measured: "no figure"}
	}
	unit := unitOf(g.Row)
	if g.RefContender == "" {
		return verdict{measured: figure(got.median, unit), known: true, met: holds(got.median, g.Factor, g.AtMost)}
	}
	reference, ok := r.stat(g.RefRow, g.RefContender)
	if !ok || reference.median == 0 {
		return verdict{measured: "no figure of " + g.RefContender}
	}
	ratio := got.median / reference.median
	return verdict{
		measured: fmt.Sprintf("%.2f × (%s, %s)", ratio, figure(got.median, unit), figure(reference.median, unit)),
		known:    true,
		met:      holds(ratio, g.Factor, g.AtMost),
	}
}

func holds(v, bound float64, atMost bool) bool {
	if atMost {
		return v <= bound
	}
	return v >= bound
}

func (v verdict) String() string {
	switch {
	case !v.known:
		return "not measured"
	case v.met:
		return "met"
	}
	return "**missed**"
}

func unitOf(id string) string {
	for _, g := range Groups {
		for _, r := range g.Rows {
			if r.ID == id {
				return r.Unit
			}
		}
	}
	return ""
}

// figure prints three significant digits and the unit.
func figure(v float64, unit string) string {
	n := number(v)
	if unit == "/s" || unit == "" {
		return n + unit
	}
	return n + " " + unit
}

// number prints a value with three digits or, past a thousand, without a fraction.
func number(v float64) string {
	switch {
	case v >= 10e3:
		return fmt.Sprintf("%.1fk", v/1e3)
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}
