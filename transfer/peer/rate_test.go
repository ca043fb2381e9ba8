package peer

import (
	"context"
	"errors"
	"testing"
)

// TestRate: who waits for its turn has it as soon as the bound is lifted, and gives up with its context.
func TestRate(t *testing.T) {
	r := NewRate(1)
	if err := r.wait(context.Background(), burst); err != nil { // they are there
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	given, gaveUp := make(chan error), make(chan error)
	go func() { given <- r.wait(context.Background(), burst) }() // would take days
	go func() { gaveUp <- r.wait(ctx, burst) }()
	cancel()
	if err := <-gaveUp; !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want Canceled", err)
	}
	select {
	case err := <-given:
		t.Fatalf("it did not wait: %v", err)
	default:
	}
	r.Set(0)
	if err := <-given; err != nil {
		t.Error(err)
	}
}
