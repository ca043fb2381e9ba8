package qemu

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"
	"unicode"

	"golang.org/x/sys/unix"
)

// ErrMonitor: what came from a monitor is not QMP, or it has gone.
var ErrMonitor = errors.New("qemu: monitor")

// A CommandError is an error that QEMU answers.
type CommandError struct{ Command, Class, Text string }

func (e *CommandError) Error() string { return fmt.Sprintf("qemu: %s: %s", e.Command, e.Text) }

// maxLine bounds one message of a monitor, in bytes.
const maxLine = 4 << 20

// answerTimeout is how long a command may take. While a guest is handed over QEMU does not answer.
const answerTimeout = 60 * time.Second

// Monitor is a connection to the QMP socket of a QEMU. One at a time may use a socket.
// Execute may be called concurrently.
type Monitor struct {
	conn *net.UnixConn
	dead chan struct{} // closed when nothing comes any more
	err  error         // why; valid then

	writing sync.Mutex // one line at a time

	mu      sync.Mutex // guards what follows
	last    uint64
	waiting map[uint64]chan message
	watches []chan<- Event
}

// message is one line from QEMU.
type message struct {
	QMP    json.RawMessage `json:"QMP"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	ID    *uint64 `json:"id"`
	Event string  `json:"event"`
	Time  struct {
		Seconds int64 `json:"seconds"`
		Micro   int64 `json:"microseconds"`
	} `json:"timestamp"`
}

// Event is something that QEMU says unasked, such as "STOP", by its clock.
type Event struct {
	Name string
	Time time.Time
}

// Dial connects to a QMP socket, a path, and leaves the negotiation behind.
func Dial(ctx context.Context, path string) (*Monitor, error) {
	c, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMonitor, err)
	}
	conn := c.(*net.UnixConn)
	m := &Monitor{conn: conn, dead: make(chan struct{}), waiting: map[uint64]chan message{}}
	lines := bufio.NewScanner(conn)
	lines.Buffer(make([]byte, 0, 64<<10), maxLine)
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	if err := m.greet(ctx, lines); err != nil || !stop() {
		return nil, errors.Join(err, ctx.Err(), conn.Close())
	}
	go m.read(lines)
	if err := m.Execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// greetTimeout: QEMU greets at once, but for a monitor that another client has.
const greetTimeout = 5 * time.Second

func (m *Monitor) greet(ctx context.Context, lines *bufio.Scanner) error {
	limit := time.Now().Add(greetTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(limit) {
		limit = d
	}
	if err := m.conn.SetReadDeadline(limit); err != nil {
		return fmt.Errorf("%w: %w", ErrMonitor, err)
	}
	var hello message
	if !lines.Scan() {
		err := lines.Err()
		if err == nil {
			err = errors.New("it hangs up")
		}
		return fmt.Errorf("%w: no greeting: another client may have it: %w", ErrMonitor, err)
	}
	if err := json.Unmarshal(lines.Bytes(), &hello); err != nil || hello.QMP == nil {
		return fmt.Errorf("%w: %q is no greeting", ErrMonitor, clip(lines.Bytes()))
	}
	return m.conn.SetReadDeadline(time.Time{})
}

func clip(b []byte) string { return string(b[:min(len(b), 200)]) }

// read hands out what comes, until the connection ends.
func (m *Monitor) read(lines *bufio.Scanner) {
	err := m.readAll(lines)
	m.err = fmt.Errorf("%w: %w", ErrMonitor, err)
	close(m.dead)
}

func (m *Monitor) readAll(lines *bufio.Scanner) error {
	for lines.Scan() {
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		var msg message
		if err := json.Unmarshal(lines.Bytes(), &msg); err != nil {
			return fmt.Errorf("%q: %w", clip(lines.Bytes()), err)
		}
		m.mu.Lock()
		if msg.ID != nil {
			if c := m.waiting[*msg.ID]; c != nil {
				delete(m.waiting, *msg.ID)
				c <- msg // has room
			}
		}
		if msg.Event != "" {
			for _, w := range m.watches {
				select {
				case w <- Event{msg.Event, time.Unix(msg.Time.Seconds, msg.Time.Micro*1000)}:
				default: // it looks at the state, not at each event
				}
			}
		}
		m.mu.Unlock()
	}
	if err := lines.Err(); err != nil {
		return err
	}
	return errors.New("QEMU has gone")
}

// Execute runs a command. Arguments may be nil, and so may result.
func (m *Monitor) Execute(ctx context.Context, command string, arguments, result any) error {
	return m.execute(ctx, command, arguments, result, nil)
}

// Stream gives QEMU one end of a stream, which it knows as "fd:NAME" then, and returns the other.
func (m *Monitor) Stream(ctx context.Context, name string) (net.Conn, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("qemu: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), name), os.NewFile(uintptr(pair[1]), name)
	defer ours.Close()
	defer theirs.Close() // QEMU has its own descriptor by then
	if err := m.execute(ctx, "getfd", map[string]string{"fdname": name}, nil, unix.UnixRights(pair[1])); err != nil {
		return nil, err
	}
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, fmt.Errorf("qemu: %w", err)
	}
	return conn, nil
}

// execute is Execute, with ancillary data that goes beside the command.
func (m *Monitor) execute(ctx context.Context, command string, arguments, result any, rights []byte) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	answer := make(chan message, 1)
	m.mu.Lock()
	m.last++
	id := m.last
	m.waiting[id] = answer
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.waiting, id)
	}()
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{command, arguments, id})
	if err != nil {
		return fmt.Errorf("qemu: %s: %w", command, err)
	}
	if err := m.send(ctx, append(line, '\n'), rights); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrMonitor, command, err)
	}
	select {
	case msg := <-answer:
		if msg.Error != nil {
			return &CommandError{command, msg.Error.Class, printable(msg.Error.Desc)}
		}
		if result == nil {
			return nil
		}
		if err := json.Unmarshal(msg.Return, result); err != nil {
			return fmt.Errorf("%w: %s: %w", ErrMonitor, command, err)
		}
		return nil
	case <-m.dead:
		return m.err
	case <-ctx.Done():
		return fmt.Errorf("qemu: %s: %w", command, context.Cause(ctx))
	}
}

// send writes a line, with rights beside its first part.
func (m *Monitor) send(ctx context.Context, line, rights []byte) error {
	m.writing.Lock()
	defer m.writing.Unlock()
	deadline, _ := ctx.Deadline() // there is one
	if err := m.conn.SetWriteDeadline(deadline); err != nil {
		return err
	}
	for len(line) > 0 {
		n, _, err := m.conn.WriteMsgUnix(line, rights, nil)
		if err != nil {
			return err
		}
		line, rights = line[n:], nil
	}
	return nil
}

// printable is QEMU's text without what a terminal would obey.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, s)
}

// Watch tells events, as far as the channel has room, until end.
func (m *Monitor) Watch() (events <-chan Event, end func()) {
	c := make(chan Event, 256)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.watches = append(m.watches, c)
	return c, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		for i, w := range m.watches {
			if w == c {
				m.watches = append(m.watches[:i:i], m.watches[i+1:]...)
				return
			}
		}
	}
}

// Close ends the connection; QEMU goes on.
func (m *Monitor) Close() error {
	err := m.conn.Close()
	<-m.dead
	return err
}
