package qemu

import (
	"encoding/json"
	"math"
	"testing"
	"time"
)

// TestProgress: what QEMU says of its progress is passed on; what cannot be is bounded.
func TestProgress(t *testing.T) {
	const most = maxFigure
	for _, c := range []struct {
		name, answer string
		want         Progress
	}{
		{"nothing", `{}`, Progress{}},
		{"as QEMU says it", `{"expected-downtime": 300, "ram": {"total": 4096000, "remaining": 96000, "mbps": 80, "dirty-pages-rate": 10, "page-size": 4096}}`,
			Progress{Done: 4000000, Total: 4096000, Rate: 10000000, Dirty: 40960, Downtime: 300 * time.Millisecond}},
		{"more remains than there is", `{"ram": {"total": 1, "remaining": 2}}`, Progress{Total: 1}},
		{"negative", `{"expected-downtime": -1, "ram": {"mbps": -1, "dirty-pages-rate": -1, "page-size": -1}}`, Progress{}},
		{"without bounds", `{"expected-downtime": 9223372036854775807, "ram": {"mbps": 1e300, "dirty-pages-rate": 9223372036854775807, "page-size": 1}}`,
			Progress{Dirty: most, Downtime: most * time.Millisecond}},
	} {
		var i info
		if err := json.Unmarshal([]byte(c.answer), &i); err != nil {
			t.Fatal(err)
		}
		if got := i.progress(); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
	if most > math.MaxInt64/most {
		t.Error("the product of two figures overflows")
	}
}
