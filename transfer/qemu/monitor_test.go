package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

const greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": []}}`

// fake listens as a QEMU would, and answers each command with what answer gives; "" is nothing.
func fake(t *testing.T, hello string, answer func(command string) string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "qmp")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	t.Cleanup(func() {
		l.Close()
		all.Wait()
	})
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer c.Close()
				converse(c, hello, answer)
			})
		}
	})
	return path
}

func converse(c net.Conn, hello string, answer func(command string) string) {
	if _, err := fmt.Fprintln(c, hello); err != nil {
		return
	}
	lines := bufio.NewScanner(c)
	for lines.Scan() {
		var in struct {
			Execute string `json:"execute"`
			ID      uint64 `json:"id"`
		}
		if json.Unmarshal(lines.Bytes(), &in) != nil {
			return
		}
		text := answer(in.Execute)
		if in.Execute == "qmp_capabilities" {
			text = `{"return": {}, "id": ID}`
		}
		if _, err := fmt.Fprint(c, strings.ReplaceAll(text, "ID", fmt.Sprint(in.ID))); err != nil {
			return
		}
		if text != "" {
			fmt.Fprintln(c)
		}
	}
}

// TestHostile: what is not QMP, or too much of it, is an error and no panic, at once.
func TestHostile(t *testing.T) {
	huge := `{"return": "` + strings.Repeat("x", maxLine+1) + `", "id": ID}`
	for _, tt := range []struct {
		name, hello, answer string
		dial                bool // it fails at Dial
	}{
		{"no greeting", "", "", true},
		{"not JSON", "hello", "", true},
		{"no QMP", `{"return": {}}`, "", true},
		{"garbage", greeting, "garbage", false},
		{"huge", greeting, huge, false},
		{"wrong type", greeting, `{"return": 7, "id": ID}`, false},
		{"deep", greeting, `{"return": ` + strings.Repeat("[", 20000) + strings.Repeat("]", 20000) + `, "id": ID}`, false},
		{"an error", greeting, `{"error": {"class": "GenericError", "desc": "no \u001b[31m"}, "id": ID}`, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m, err := Dial(t.Context(), fake(t, tt.hello, func(string) string { return tt.answer }))
			if tt.dial {
				if !errors.Is(err, ErrMonitor) {
					t.Errorf("%v, want ErrMonitor", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			_, err = m.Version(t.Context())
			var refused *CommandError
			if !errors.Is(err, ErrMonitor) && !errors.As(err, &refused) {
				t.Errorf("%v, want ErrMonitor or a CommandError", err)
			}
			if err != nil && strings.Contains(err.Error(), "\x1b") {
				t.Errorf("%q has what a terminal obeys", err)
			}
		})
	}
}

// TestSilent: a monitor that does not answer holds nobody longer than their context.
func TestSilent(t *testing.T) {
	m, err := Dial(t.Context(), fake(t, greeting, func(string) string { return "" }))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := m.Version(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, want DeadlineExceeded", err)
	}
}

// untimed is a migration that is completed, but for how long it took.
const untimed = "untimed"

// script plays a migration: each query-migrate gets the next state, the last one for ever.
type script struct {
	mu     sync.Mutex
	states []string
	said   []string // commands, but for queries
}

func (s *script) answer(command string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if command != "query-migrate" {
		s.said = append(s.said, command)
		if command == "migrate_cancel" {
			s.states = []string{"cancelling", "cancelled"}
		}
		return `{"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}}` + "\n" + `{"return": {}, "id": ID}`
	}
	state := s.states[0]
	if len(s.states) > 1 {
		s.states = s.states[1:]
	}
	if state == untimed {
		return `{"return": {"status": "completed", "ram": {"total": 10, "remaining": 4, "transferred": 6}}, "id": ID}`
	}
	return fmt.Sprintf(`{"return": {"status": %q, "downtime": 12, "total-time": 20, "ram": {"total": 10, "remaining": 4, "transferred": 6}}, "id": ID}`, state)
}

func (s *script) count(command string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.said {
		if c == command {
			n++
		}
	}
	return n
}

// TestMigrate: the disks are told once, and once they are given up there is no way back.
func TestMigrate(t *testing.T) {
	broken := errors.New("broken")
	for _, tt := range []struct {
		name      string
		states    []string
		paused    error
		want      error
		continues int
		cancels   int
	}{
		{"well", []string{"setup", "active", "pre-switchover", "pre-switchover", "device", "completed"}, nil, nil, 1, 0},
		{"before it has counted", []string{"active", untimed, untimed, "completed"}, nil, nil, 0, 0},
		{"without a pause", []string{"active", "completed"}, nil, nil, 0, 0},
		{"failed", []string{"active", "failed"}, nil, ErrFailed, 0, 0},
		{"failed late", []string{"pre-switchover", "device", "failed"}, nil, ErrFailed, 1, 0},
		{"the disks do not come", []string{"active", "pre-switchover"}, broken, broken, 0, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := &script{states: tt.states}
			m, err := Dial(t.Context(), fake(t, greeting, s.answer))
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			paused := 0
			r, err := m.Migrate(t.Context(), Options{URI: "fd:x", Paused: func(context.Context) error { paused++; return tt.paused }})
			if !errors.Is(err, tt.want) {
				t.Errorf("%v, want %v", err, tt.want)
			}
			if n := s.count("migrate-continue"); n != tt.continues {
				t.Errorf("continued %d times, want %d", n, tt.continues)
			}
			if n := s.count("migrate_cancel"); n != tt.cancels {
				t.Errorf("cancelled %d times, want %d", n, tt.cancels)
			}
			if paused > 1 {
				t.Errorf("the disks were told %d times", paused)
			}
			if err == nil && (r.Downtime != 12*time.Millisecond || r.Bytes != 6) {
				t.Errorf("%+v", r)
			}
		})
	}
}

// TestCancel: with its context the migration ends, and the guest is where it was.
func TestCancel(t *testing.T) {
	s := &script{states: []string{"active"}}
	m, err := Dial(t.Context(), fake(t, greeting, s.answer))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	ctx, cancel := context.WithCancel(t.Context())
	_, err = m.Migrate(ctx, Options{URI: "fd:x", Progress: func(Progress) { cancel() }})
	if !errors.Is(err, context.Canceled) || s.count("migrate_cancel") != 1 {
		t.Errorf("%v, cancelled %d times", err, s.count("migrate_cancel"))
	}
}
