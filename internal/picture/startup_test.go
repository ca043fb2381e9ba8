package picture

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
)

var list = Startup{Name: "a<b", Size: 1 << 30, Parent: "base", Ranges: []Range{{0, 65536, 0, 0}, {1 << 20, 65536, 0, 3}, {1 << 29, 131072, 1, 900}}}

func TestBursts(t *testing.T) {
	got := list.Bursts()
	if len(got) != 2 || got[0].Bytes != 131072 || got[1].From != 900 || len(got[0].Ranges) != 2 {
		t.Errorf("%+v", got)
	}
	if len(Startup{}.Bursts()) != 0 {
		t.Error("bursts of nothing")
	}
}

// TestSVG: the drawing is XML and has a mark for each range, also when there is none.
func TestSVG(t *testing.T) {
	for _, s := range []Startup{list, {}} {
		var b bytes.Buffer
		if err := s.SVG(&b); err != nil {
			t.Fatal(err)
		}
		marks := strings.Count(b.String(), "<rect") - 1 // the background
		if marks != len(s.Ranges) {
			t.Errorf("%d marks for %d ranges", marks, len(s.Ranges))
		}
		d := xml.NewDecoder(&b)
		for {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestDot(t *testing.T) {
	var b strings.Builder
	if err := list.Dot(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`image [label="a<b"]`, "image -> parent", "image -> b0", "b0 -> b1"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in %s", want, b.String())
		}
	}
}
