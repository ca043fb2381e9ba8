package measure

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Commands runs programs that keep their files in the folder Dir.
type Commands struct{ Dir string }

// Prepare makes a command that a Ctrl-C of the terminal does not reach: it ends with ctx, by SIGTERM.
func (c Commands) Prepare(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "TMPDIR="+c.Dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	return cmd
}

// Run runs a program to its end, with more environment. It gives its stdout; an error has its stderr.
func (c Commands) Run(ctx context.Context, env []string, name string, args ...string) (string, *os.ProcessState, error) {
	cmd := c.Prepare(ctx, name, args...)
	cmd.Env = append(cmd.Env, env...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return out.String(), cmd.ProcessState, fmt.Errorf("%s %s: %w: %s", filepath.Base(name), strings.Join(args[:min(2, len(args))], " "), err, Tail(errOut.String()))
	}
	return out.String(), cmd.ProcessState, nil
}

// Tail is the last part of a text, trimmed.
func Tail(s string) string {
	s = strings.TrimSpace(s)
	return s[max(0, len(s)-400):]
}

// Server is a process that was started in the background.
type Server struct {
	Cmd  *exec.Cmd
	Done chan struct{} // closed when the process has been waited for
	log  string
}

// Start starts a server; what it says goes to a file of the folder. It outlives ctx, so that its
// owner can end it in order.
func (c Commands) Start(ctx context.Context, env []string, name string, args ...string) (*Server, error) {
	log, err := os.CreateTemp(c.Dir, "log.*")
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := c.Prepare(context.WithoutCancel(ctx), name, args...)
	cmd.Env = append(cmd.Env, env...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s := &Server{Cmd: cmd, Done: make(chan struct{}), log: log.Name()}
	go func() {
		_ = cmd.Wait() // ProcessState has it
		close(s.Done)
	}()
	return s, nil
}

// PID is the number of the process.
func (s *Server) PID() int { return s.Cmd.Process.Pid }

// Tail is the end of what the server has said.
func (s *Server) Tail() string {
	text, err := os.ReadFile(s.log)
	if err != nil {
		return err.Error()
	}
	return Tail(string(text))
}

// Until returns when ready says so, or an error if the server ends first or it takes too long.
func (s *Server) Until(ctx context.Context, limit time.Duration, ready func() bool) error {
	end := time.Now().Add(limit)
	for !ready() {
		select {
		case <-s.Done:
			return fmt.Errorf("%s ended before it was ready: %s", filepath.Base(s.Cmd.Path), s.Tail())
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(2 * time.Millisecond):
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s does not become ready: %s", filepath.Base(s.Cmd.Path), s.Tail())
		}
	}
	return nil
}

// Wait returns when the process has ended, or an error if it takes longer than that.
func (s *Server) Wait(limit time.Duration) error {
	select {
	case <-s.Done:
		return nil
	case <-time.After(limit):
		return fmt.Errorf("process %d does not end: %s", s.PID(), s.Tail())
	}
}

// End asks the process to end and, if it does not, kills it after detach, which may be nil.
func (s *Server) End(detach func()) {
	_ = s.Cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	if s.Wait(10*time.Second) != nil {
		if detach != nil {
			detach()
		}
		_ = s.Cmd.Process.Kill()
		<-s.Done
	}
}

// Forget removes what the server has said.
func (s *Server) Forget() { _ = os.Remove(s.log) }
