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
	"os"
	"time"

	"github.com/sealdisk/sealdisk/blockstore"
)

// Client speaks to the daemon that owns a store. Safe for concurrent use.
type Client struct {
	http *http.Client
}

func newClient(store string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		dir, err := os.Open(store)
		if err != nil {
			return nil, err
		}
		defer dir.Close()
		return new(net.Dialer).DialContext(ctx, "unix", socketIn(dir))
	}
	return &Client{http: &http.Client{Transport: &http.Transport{DialContext: dial, MaxIdleConns: 1}}}
}

// ErrUnreachable: no daemon has done anything for the request.
var ErrUnreachable = errors.New("daemon: nobody serves the store")

// Handler takes the events of an operation but its end; nil drops them.
type Handler func(Event)

// Call runs an operation: request and result as api.go has them. Body, if not
// nil, follows the request. Cancelling ctx stops the operation. A failure is an
// [*Error].
func (c *Client) Call(ctx context.Context, op string, request any, body io.Reader, result any, on Handler) error {
	line, err := json.Marshal(request)
	if err != nil {
		return fmt.Errorf("daemon: request: %w", err)
	}
	var r io.Reader = bytes.NewReader(append(line, '\n'))
	if body != nil {
		// Not a ReadCloser: the body is the caller's, and http must not know its length.
		r = io.MultiReader(r, body)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://daemon/v1/"+op, r)
	if err != nil {
		return fmt.Errorf("daemon: %w", err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return interrupted(ctx)
		}
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusServiceUnavailable:
		return fmt.Errorf("%w: it is about to end", ErrUnreachable)
	case resp.StatusCode != http.StatusOK:
		return fail(CodeInternal, "the daemon may be of another version: end it", "daemon: %s: %s", op, resp.Status)
	}
	err = readEvents(resp.Body, result, on)
	if ctx.Err() != nil && err != nil {
		return interrupted(ctx)
	}
	return err
}

func interrupted(ctx context.Context) *Error {
	return &Error{Code: CodeInterrupted, Message: "interrupted", cause: ctx.Err()}
}

// reply is an Event whose result is not decoded yet.
type reply struct {
	Event
	Result json.RawMessage `json:"result"`
}

func readEvents(r io.Reader, result any, on Handler) error {
	dec := json.NewDecoder(bufio.NewReader(r))
	for {
		var e reply
		if err := dec.Decode(&e); err != nil {
			return fail(CodeInternal, "the daemon has ended: start it again (sealdisk serve, or systemd does); what was flushed is there", "daemon: the connection broke: %w", err)
		}
		switch {
		case e.Error != nil:
			return e.Error
		case e.Result != nil:
			if result == nil {
				return nil
			}
			if err := json.Unmarshal(e.Result, result); err != nil {
				return fmt.Errorf("daemon: result: %w", err)
			}
			return nil
		case on != nil:
			on(e.Event)
		}
	}
}

// Conn is a way to the daemon that owns a store: one that ran already, or one
// inside this process.
type Conn struct {
	*Client
	opts   Options
	local  *Daemon // nil: another process
	server *server
}

// Waits of Connect.
const (
	connectPatience = 15 * time.Second // for a process that is about to end
	connectStep     = 50 * time.Millisecond
)

// Connect finds the daemon of o.Store or becomes it. A process that is just
// closing the store, or that has it for one passing operation while a persistent
// daemon is wanted, is waited for.
func Connect(ctx context.Context, o Options) (*Conn, error) {
	deadline := time.Now().Add(connectPatience)
	for {
		c, err := connectOnce(ctx, o)
		var inUse *blockstore.InUseError
		if err == nil || !errors.As(err, &inUse) && !errors.Is(err, errPassing) || time.Now().After(deadline) {
			return c, err
		}
		select {
		case <-ctx.Done():
			return nil, interrupted(ctx)
		case <-time.After(connectStep):
		}
	}
}

// errPassing: the store is another process's for one operation.
var errPassing = errors.New("passing")

func connectOnce(ctx context.Context, o Options) (*Conn, error) {
	c := &Conn{Client: newClient(o.Store), opts: o}
	var st Status
	err := c.Client.Call(ctx, OpStatus, Nothing{}, nil, &st, nil)
	switch {
	case err == nil && o.Persistent && (!st.Persistent || st.Ending):
		message := fmt.Sprintf("the store is in use by %q (process %d)", st.Command, st.PID)
		return nil, &Error{Code: CodeInUse, Message: message, Hint: "try again when it is done", cause: errPassing}
	case err == nil:
		return c, nil
	case !errors.Is(err, ErrUnreachable):
		return nil, err
	}
	d, err := openDaemon(ctx, o)
	if err != nil {
		return nil, err
	}
	s, err := serve(d)
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	c.local, c.server = d, s
	return c, nil
}

// Call is Client.Call. If the daemon ended before it took the request on, another
// one is found.
func (c *Conn) Call(ctx context.Context, op string, request any, body io.Reader, result any, on Handler) error {
	for {
		err := c.Client.Call(ctx, op, request, body, result, on)
		if !errors.Is(err, ErrUnreachable) || c.local != nil || body != nil {
			return err
		}
		next, err := Connect(ctx, c.opts)
		if err != nil {
			return err
		}
		*c = *next
	}
}

// Local says whether the daemon is in this process.
func (c *Conn) Local() bool { return c.local != nil }

// Unlock asks for the identity's passphrase now, if this process will need it.
func (c *Conn) Unlock() error {
	if c.local == nil {
		return nil
	}
	if c.local.locked != nil {
		return c.local.locked
	}
	return c.local.host.Unlock()
}

// Listen answers peers on l, with a daemon in this process, until ctx ends.
func (c *Conn) Listen(ctx context.Context, l net.Listener) error { return c.local.Listen(ctx, l) }

// Metrics answers Prometheus on l, with a daemon in this process, until ctx ends.
func (c *Conn) Metrics(ctx context.Context, l net.Listener) error { return c.local.Metrics(ctx, l) }

// Wait returns when a daemon in this process has no mount left, or when one in
// another process has none at dir.
func (c *Conn) Wait(ctx context.Context, dir string) error {
	if c.local != nil {
		return c.local.mounts.wait(ctx)
	}
	return c.Call(ctx, OpWait, UnmountRequest{Dir: dir}, nil, nil, nil)
}

// Running gives a client for a daemon that may have mounts; nil if none runs.
func Running(ctx context.Context, store string) *Client {
	c := newClient(store)
	var st Status
	if err := c.Call(ctx, OpStatus, Nothing{}, nil, &st, nil); err != nil || !st.Persistent {
		c.http.CloseIdleConnections()
		return nil
	}
	return c
}

// Serves says whether a daemon in this process has mounts.
func (c *Conn) Serves() bool { return c.local != nil && c.local.mounts.serves() }

// Refuse makes a daemon in this process refuse further mounts.
func (c *Conn) Refuse() {
	if c.local != nil {
		c.local.mounts.end()
	}
}

// Close ends a daemon in this process after its mounts and the operations of
// others are done.
func (c *Conn) Close() error {
	c.http.CloseIdleConnections()
	if c.local == nil {
		return nil
	}
	ctx := context.Background()
	err := errors.Join(c.local.mounts.wait(ctx), c.server.stop(ctx))
	return errors.Join(err, c.local.Close())
}
