package peer

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// TestRate: who waits for its turn has it in time, or as soon as the bound is lifted, and gives up with its context.
func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRate(burst)
		began := time.Now()
		for range 3 { // the first are there
			if err := r.wait(context.Background(), burst); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(began).Round(time.Millisecond); took != 2*time.Second {
			t.Errorf("three bursts at one a second took %v, want 2s", took)
		}
		r.Set(1)
		ctx, cancel := context.WithCancel(context.Background())
		given, gaveUp := make(chan error, 1), make(chan error, 1)
		go func() { given <- r.wait(context.Background(), burst) }() // would take days
		go func() { gaveUp <- r.wait(ctx, burst) }()
		cancel()
		if err := <-gaveUp; !errors.Is(err, context.Canceled) {
			t.Errorf("%v, want Canceled", err)
		}
		synctest.Wait()
		if len(given) > 0 {
			t.Error("it did not wait")
		}
		began = time.Now()
		r.Set(0)
		if err := <-given; err != nil || time.Since(began) > 0 {
			t.Errorf("after the bound was lifted it waited %v: %v", time.Since(began), err)
		}
	})
}
