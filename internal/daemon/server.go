package daemon

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealdisk/sealdisk/internal/exchange"
)

const (
	socketName   = "control.sock"
	maxRequest   = 1 << 20                // bytes of the request line
	progressStep = 100 * time.Millisecond // between two progress events
)

// call is one running operation.
type call struct {
	line []byte        // the request
	body *bufio.Reader // what follows it
	emit func(Event)

	mu   sync.Mutex
	next time.Time // of the next progress event
}

// progress passes on some of the reports that it gets, and the last.
func (c *call) progress(done, total int64) {
	c.mu.Lock()
	now := time.Now()
	due := !now.Before(c.next) || total > 0 && done >= total
	if due {
		c.next = now.Add(progressStep)
	}
	c.mu.Unlock()
	if due {
		c.emit(Event{Progress: &ProgressEvent{Done: done, Total: total}})
	}
}

// stage passes on where a migration stands.
func (c *call) stage(s exchange.Stage) {
	c.emit(Event{Stage: &StageEvent{
		Phase: s.Phase, Round: s.Round, Bytes: s.Bytes, Duration: int64(s.Took), Rate: s.Rate, Dirty: s.Dirty, Downtime: int64(s.Downtime),
	}})
}

func (c *call) note(format string, args ...any) { c.emit(Event{Note: fmt.Sprintf(format, args...)}) }

// operation runs one call and gives its result.
type operation func(ctx context.Context, c *call) (any, error)

// typed makes an operation of a function of its own request type.
func typed[R any](run func(ctx context.Context, c *call, r R) (any, error)) operation {
	return func(ctx context.Context, c *call) (any, error) {
		var r R
		dec := json.NewDecoder(bytes.NewReader(c.line))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&r); err != nil {
			return nil, fail(CodeUsage, "", "daemon: request: %w", err)
		}
		return run(ctx, c, r)
	}
}

// server is a daemon's API on its socket.
type server struct {
	d    *Daemon
	http *http.Server
	path string
	done chan struct{}
}

// serve listens on the control socket. The store is locked, so a socket that is
// there already belongs to a process that has died.
func serve(d *Daemon) (*server, error) {
	dir, err := os.Open(d.opts.Store)
	if err != nil {
		return nil, fmt.Errorf("daemon: %w", err)
	}
	defer dir.Close()
	path := filepath.Join(d.opts.Store, socketName)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("daemon: stale control socket: %w", err)
	}
	l, err := net.Listen("unix", socketIn(dir))
	if err != nil {
		return nil, fmt.Errorf("daemon: control socket: %w", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // the path that it knows is gone by then
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("daemon: control socket: %w", err), l.Close())
	}
	s := &server{d: d, path: path, done: make(chan struct{})}
	s.http = &http.Server{Handler: s.handler(), ReadHeaderTimeout: 10 * time.Second}
	go func() {
		defer close(s.done)
		if err := s.http.Serve(ownersOnly{l}); !errors.Is(err, http.ErrServerClosed) {
			d.log.Error("the control socket failed", "err", err)
		}
	}()
	return s, nil
}

// socketIn names the socket through an open folder: the path of a store may be
// longer than the 107 bytes that a socket's address has room for.
func socketIn(dir *os.File) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), socketName)
}

// stop takes the socket away and waits for the calls that run.
func (s *server) stop(ctx context.Context) error {
	err := os.Remove(s.path)
	err = errors.Join(err, s.http.Shutdown(ctx))
	<-s.done
	if err != nil {
		return fmt.Errorf("daemon: control socket: %w", err)
	}
	return nil
}

// ownersOnly accepts connections of this user and of root.
type ownersOnly struct{ net.Listener }

func (l ownersOnly) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if uid, err := userOf(c); err == nil && (uid == 0 || uid == os.Geteuid()) {
			return c, nil
		}
		_ = c.Close() // somebody else's
	}
}

func userOf(c net.Conn) (uid int, err error) {
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return -1, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return -1, err
	}
	if credErr != nil {
		return -1, credErr
	}
	return int(cred.Uid), nil
}

// handler answers POST /v1/OPERATION.
func (s *server) handler() http.Handler {
	ops := s.d.operations()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/debug/pprof/") {
			profile(w, r)
			return
		}
		name, ok := strings.CutPrefix(r.URL.Path, "/v1/")
		op := ops[name]
		if !ok || op == nil || r.Method != http.MethodPost {
			http.Error(w, "unknown operation", http.StatusNotFound)
			return
		}
		// A stream is answered while it still comes.
		if err := http.NewResponseController(w).EnableFullDuplex(); err != nil {
			s.d.log.Error("control socket", "err", err)
		}
		w.Header().Set("Content-Type", "application/x-ndjson")
		s.run(r.Context(), name, op, w, r.Body)
	})
}

// profile answers what net/http/pprof knows without the arguments of functions, some of
// which are keys. At most a minute: the daemon's end waits for it.
func profile(w http.ResponseWriter, r *http.Request) {
	if n, err := strconv.Atoi(r.FormValue("seconds")); err == nil && n > 60 || r.FormValue("debug") == "2" {
		http.Error(w, "at most 60 seconds, and no debug=2", http.StatusForbidden)
		return
	}
	switch name := strings.TrimPrefix(r.URL.Path, "/debug/pprof/"); name {
	case "profile":
		pprof.Profile(w, r)
	case "trace":
		pprof.Trace(w, r)
	case "allocs", "block", "goroutine", "heap", "mutex", "threadcreate":
		pprof.Handler(name).ServeHTTP(w, r)
	default:
		http.NotFound(w, r)
	}
}

func (s *server) run(ctx context.Context, name string, op operation, w http.ResponseWriter, body io.Reader) {
	var mu sync.Mutex
	over := false // what is told later is told to nobody: w is not ours any more
	defer func() {
		mu.Lock()
		defer mu.Unlock()
		over = true
	}()
	enc := json.NewEncoder(w)
	c := &call{body: bufio.NewReaderSize(body, 64<<10)}
	c.emit = func(e Event) {
		mu.Lock()
		defer mu.Unlock()
		if over {
			return
		}
		if err := enc.Encode(e); err == nil {
			_ = http.NewResponseController(w).Flush() // a client that has gone ends ctx
		}
	}
	began := time.Now()
	result, err := s.attempt(ctx, op, c)
	if errors.Is(err, errEnding) { // nothing was answered so far
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	if err != nil {
		failure := AsError(err)
		s.d.log.Info("operation failed", "op", name, "code", failure.Code, "err", err, "took", time.Since(began))
		c.emit(Event{Error: failure})
		return
	}
	s.d.log.Info("operation", "op", name, "took", time.Since(began))
	c.emit(Event{Result: result})
}

func (s *server) attempt(ctx context.Context, op operation, c *call) (any, error) {
	line, err := readLine(c.body)
	if err != nil {
		return nil, fail(CodeUsage, "", "daemon: request: %w", err)
	}
	c.line = line
	return op(ctx, c)
}

// readLine reads a request of at most maxRequest bytes.
func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) > maxRequest {
			return nil, fmt.Errorf("longer than %d bytes", maxRequest)
		}
		line = append(line, part...)
		if !errors.Is(err, bufio.ErrBufferFull) {
			if errors.Is(err, io.EOF) && len(line) > 0 {
				err = nil
			}
			return line, err
		}
	}
}
