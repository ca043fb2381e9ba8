package measure

import (
	"context"
	"errors"
	"os"
	"slices"
	"syscall"
	"testing"
)

// TestStatus: the exit status says how a program ended.
func TestStatus(t *testing.T) {
	args := []string{"--rounds", "3"}
	failure := errors.New("it failed")
	for _, tt := range []struct {
		name       string
		parse, run error
		signal     bool
		want       int
	}{
		{"done", nil, nil, false, 0},
		{"arguments that are wrong", failure, nil, false, 2},
		{"a failure", nil, failure, false, 1},
		{"a signal", nil, context.Canceled, true, 130},
		{"a signal that came too late", nil, nil, true, 0},
	} {
		ran := false
		got := Main("test", args, func(given []string) ([]string, error) { return given, tt.parse }, func(ctx context.Context, given []string) error {
			ran = true
			if !slices.Equal(given, args) {
				t.Errorf("%s: runs with %q, want what was parsed of %q", tt.name, given, args)
			}
			if tt.signal {
				if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
					t.Fatal(err)
				}
				<-ctx.Done()
			}
			return tt.run
		})
		if got != tt.want {
			t.Errorf("%s: got status %d, want %d", tt.name, got, tt.want)
		}
		if want := tt.parse == nil; ran != want {
			t.Errorf("%s: ran %v, want %v", tt.name, ran, want)
		}
	}
}
