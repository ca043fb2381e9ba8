package crashtest

import (
	"testing"
	"time"
)

// Nothing that was acknowledged is lost or torn when the daemon is killed.
func TestKill(t *testing.T) {
	kills := int(number(t, "SEALDISK_CRASH_KILLS", 7))
	w, err := create(t.TempDir(), t.TempDir(), chooser(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.stop(t) })
	for round := range kills {
		if round%5 == 4 { // while it starts
			if err := w.begin(); err != nil {
				t.Fatal(err)
			}
			<-time.After(time.Duration(w.r.Int64N(int64(400 * time.Millisecond))))
			if err := w.kill(); err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
			continue
		}
		if err := w.open(); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if err := w.play(100*time.Millisecond, 1500*time.Millisecond, w.kill); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
	}
	if err := w.open(); err != nil {
		t.Fatal(err)
	}
	if err := w.finish(); err != nil {
		t.Fatal(err)
	}
}
