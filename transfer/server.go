package transfer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/transfer/peer"
)

// Images is what a host lets its peers see and do. An error that is [ErrNoImage] or
// [ErrRefused] is told to the peer, of others it learns nothing.
type Images interface {
	// Find resolves a name or an id in hex, for a peer with that role at least.
	Find(p peer.Peer, ref string, least peer.Role) (blockstore.ImageID, error)
	// Guard keeps what the head of an image reaches, until release.
	Guard(id blockstore.ImageID) (release func(), err error)
	// Changed is closed once the image may have another head than now.
	Changed(id blockstore.ImageID) <-chan struct{}
	// Grant gives the lease of an image to a peer, whose host key is public and whose claim holds of
	// all that goes with it, durably.
	Grant(ctx context.Context, p peer.Peer, public [32]byte, id blockstore.ImageID, c Claim) error
	// Part begins a new epoch if a snapshot, named by its commit, shares the one that seals now.
	Part(ctx context.Context, p peer.Peer, id blockstore.ImageID, snapshot blockstore.CommitID) error
	// AddRecipients seals an image to further recipients.
	AddRecipients(ctx context.Context, p peer.Peer, id blockstore.ImageID, recipients []string) error
}

// Server answers peers. Safe for concurrent use.
type Server struct {
	store   *blockstore.Store
	images  Images
	refused func(cause string)
	log     *slog.Logger
	http    *http.Server
	conns   *connListener

	mu        sync.Mutex
	answering map[peer.Fingerprint]chan struct{} // held by who sends objects to a peer
	perKey    map[peer.Fingerprint]int           // connections
	pins      map[pinKey]*pin
	offers    map[*peer.Conn]*offering
}

// Timeouts of a server.
const (
	idleTimeout  = 10 * time.Minute
	stallTimeout = 60 * time.Second // for a peer to take what it asked for
	pollTimeout  = 50 * time.Second // of After
)

// maxAnswering is how many requests for objects of one peer are answered at a time: each
// takes a buffer of up to 3 MiB.
const maxAnswering = 8

// NewServer makes a server of what a store holds. Refused is told why a request or a
// connection was refused. It ends with Close.
func NewServer(st *blockstore.Store, images Images, refused func(cause string), log *slog.Logger) *Server {
	s := &Server{
		store: st, images: images, refused: refused, log: log, conns: newConnListener(),
		perKey: map[peer.Fingerprint]int{}, answering: map[peer.Fingerprint]chan struct{}{}, pins: map[pinKey]*pin{}, offers: map[*peer.Conn]*offering{},
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/images/{image}", s.answer(s.describe))
	mux.HandleFunc("GET /v1/images/{image}/after/{commit}", s.answer(s.after))
	mux.HandleFunc("GET /v1/images/{image}/news/{commit}", s.answer(s.news))
	mux.HandleFunc("POST /v1/images/{image}/objects", s.answer(s.objects))
	mux.HandleFunc("POST /v1/images/{image}/commits", s.answer(s.commits))
	mux.HandleFunc("POST /v1/images/{image}/recipients", s.answer(s.recipients))
	mux.HandleFunc("POST /v1/images/{image}/lease", s.answer(s.lease))
	mux.HandleFunc("POST /v1/images/{image}/parts/{commit}", s.answer(s.part))
	mux.HandleFunc("DELETE /v1/images/{image}/pin", s.answer(s.unpin))
	mux.HandleFunc("GET /v1/offer", s.answer(s.offer))
	mux.HandleFunc("POST /v1/report", s.answer(s.report))
	s.http = &http.Server{
		Handler: mux, Protocols: new(http.Protocols),
		ReadHeaderTimeout: stallTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		HTTP2:    &http.HTTP2Config{MaxConcurrentStreams: 32, SendPingTimeout: pingAfter, PingTimeout: pingAfter},
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, c)
		},
	}
	s.http.Protocols.SetUnencryptedHTTP2(true) // the connections are TLS already
	go func() {
		if err := s.http.Serve(s.conns); !errors.Is(err, http.ErrServerClosed) {
			log.Error("serving peers", "err", err)
		}
	}()
	return s
}

// Handle answers a connection, until it ends. [ErrRefused]: the peer has too many.
func (s *Server) Handle(c *peer.Conn) error {
	if err := s.Admit(c); err != nil {
		return err
	}
	return s.conns.pass(c)
}

// Admit counts a connection of a peer, until it ends. [ErrRefused]: it has too many, and
// this one was closed.
func (s *Server) Admit(c *peer.Conn) error {
	most := c.Peer.Quota.Connections
	if most == 0 {
		most = peer.DefaultConnections
	}
	s.mu.Lock()
	if s.perKey[c.Peer.Key] >= most {
		s.mu.Unlock()
		s.refused("connections")
		return errors.Join(fmt.Errorf("%d connections of peer %s: %w", most, c.Peer.Name, ErrRefused), c.Close())
	}
	s.perKey[c.Peer.Key]++
	s.mu.Unlock()
	go func() {
		<-c.Done()
		s.forget(c)
	}()
	return nil
}

// forget drops what was kept for a connection.
func (s *Server) forget(c *peer.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.perKey[c.Peer.Key]--; s.perKey[c.Peer.Key] == 0 {
		delete(s.perKey, c.Peer.Key)
	}
	for key, p := range s.pins {
		if key.conn == c {
			p.dropLocked(s, key)
		}
	}
	delete(s.offers, c)
}

// Close ends all connections. Answers under way have until ctx ends.
func (s *Server) Close(ctx context.Context) error {
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = errors.Join(err, s.http.Close())
	}
	return errors.Join(err, s.conns.Close())
}

type connKey struct{}

// answer makes a handler of a function that gets who asks; what goes wrong before the
// first byte becomes a status.
func (s *Server) answer(run func(c *peer.Conn, w http.ResponseWriter, r *http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		c, ok := r.Context().Value(connKey{}).(*peer.Conn)
		if !ok {
			http.Error(w, "not a peer", http.StatusForbidden)
			return
		}
		began := time.Now()
		if err := http.NewResponseController(w).SetReadDeadline(began.Add(stallTimeout)); err != nil {
			s.log.Debug("no deadline for a request's body", "err", err)
		}
		err := run(c, w, r)
		s.log.Debug("answered a peer", "peer", c.Peer.Name, "method", r.Method, "path", r.URL.Path, "took", time.Since(began), "err", err)
		if err == nil {
			return
		}
		status, text := statusOf(err)
		s.refused(strings.ToLower(http.StatusText(status)))
		if status >= http.StatusInternalServerError {
			s.log.Error("answering a peer", "peer", c.Peer.Name, "path", r.URL.Path, "err", err)
		}
		http.Error(w, text, status)
	}
}

func statusOf(err error) (status int, text string) {
	switch {
	case errors.Is(err, errBegun):
		panic(http.ErrAbortHandler) // the peer must see that the answer is not whole
	case errors.Is(err, ErrNoImage), errors.Is(err, blockstore.ErrNotFound):
		return http.StatusNotFound, "no such image"
	case errors.Is(err, ErrRefused):
		return http.StatusForbidden, err.Error()
	case errors.Is(err, ErrProtocol):
		return http.StatusBadRequest, err.Error()
	case errors.Is(err, blockstore.ErrNoSpace):
		return http.StatusInsufficientStorage, "no space left"
	}
	return http.StatusInternalServerError, "internal error"
}

// errBegun: the answer had begun when it failed.
var errBegun = errors.New("transfer: answer cut")

// image resolves the image of a request for its peer.
func (s *Server) image(c *peer.Conn, r *http.Request) (blockstore.ImageID, error) {
	return s.images.Find(c.Peer, r.PathValue("image"), peer.Replica)
}

func (s *Server) describe(c *peer.Conn, w http.ResponseWriter, r *http.Request) error {
	id, err := s.image(c, r)
	if err != nil {
		return err
	}
	head, _, err := s.store.Head(id)
	if err != nil {
		return err
	}
	if r.Header.Get("If-None-Match") == `"`+head.String()+`"` {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	return s.tell(c, w, id)
}

// tell pins an image and describes it.
func (s *Server) tell(c *peer.Conn, w http.ResponseWriter, id blockstore.ImageID) error {
	d, err := s.pinned(c, id)
	if err != nil {
		return err
	}
	b, err := encMode.Marshal(d)
	if err != nil {
		return fmt.Errorf("transfer: %w", err)
	}
	_, err = w.Write(b)
	return err
}

// pinned pins an image and gives what there is to tell of it.
func (s *Server) pinned(c *peer.Conn, id blockstore.ImageID) (d Description, err error) {
	if err := s.pin(c, id); err != nil {
		return d, err
	}
	// Only what is looked at from here on is kept.
	_, raw, err := s.store.Head(id)
	if err != nil {
		return d, err
	}
	leases, err := s.store.Leases(id)
	if err != nil {
		return d, err
	}
	if len(leases) > maxLeases {
		return d, fmt.Errorf("image %v: %d leases: %w", id, len(leases), ErrRefused)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.pins[pinKey{c, id}]; p != nil {
		p.told = raw
	}
	return Description{Version: Version, Image: id, Leases: leases, Head: raw}, nil
}

// lease gives the lease to the peer and describes the image as it is then.
func (s *Server) lease(c *peer.Conn, w http.ResponseWriter, r *http.Request) error {
	id, err := s.images.Find(c.Peer, r.PathValue("image"), peer.Host)
	if err != nil {
		return err
	}
	var claim Claim
	if err := decode(r.Body, maxReport, &claim); err != nil {
		return err
	}
	if err := s.pin(c, id); err != nil { // before it is given: what can fail fails now
		return err
	}
	if err := s.images.Grant(r.Context(), c.Peer, c.Public, id, claim); err != nil {
		return err
	}
	return s.tell(c, w, id)
}

// after answers once the head is another one, or says that it is not.
func (s *Server) after(c *peer.Conn, w http.ResponseWriter, r *http.Request) error {
	_, changed, err := s.waitAfter(c, r)
	switch {
	case err != nil:
		return err
	case changed:
		w.WriteHeader(http.StatusNoContent)
	default:
		w.WriteHeader(http.StatusNotModified)
	}
	return nil
}

// waitAfter returns when the head of an image is another one than the request names, or soon after
// pollTimeout; changed says which.
func (s *Server) waitAfter(c *peer.Conn, r *http.Request) (id blockstore.ImageID, changed bool, err error) {
	id, err = s.image(c, r)
	if err != nil {
		return id, false, err
	}
	have, err := blockstore.ParseCommitID(r.PathValue("commit"))
	if err != nil {
		return id, false, fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	ctx, cancel := context.WithTimeout(r.Context(), pollTimeout)
	defer cancel()
	for {
		changed := s.images.Changed(id)
		head, _, err := s.store.Head(id)
		if err != nil || head != have {
			return id, err == nil, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return id, false, nil
		}
	}
}

func (s *Server) part(c *peer.Conn, w http.ResponseWriter, r *http.Request) error {
	id, err := s.images.Find(c.Peer, r.PathValue("image"), peer.Host)
	if err != nil {
		return err
	}
	snapshot, err := blockstore.ParseCommitID(r.PathValue("commit"))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	if err := s.images.Part(r.Context(), c.Peer, id, snapshot); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// idsOf reads the ids that a request asks for.
func idsOf[ID ~[32]byte](w http.ResponseWriter, r *http.Request) ([]ID, error) {
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 32*maxRequestIDs))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	if len(b)%32 != 0 {
		return nil, fmt.Errorf("%w: %d bytes of ids", ErrProtocol, len(b))
	}
	ids := make([]ID, 0, len(b)/32)
	for ; len(b) > 0; b = b[32:] {
		ids = append(ids, ID(b))
	}
	return ids, nil
}

// turns gives what bounds the answers to a peer.
func (s *Server) turns(key peer.Fingerprint) chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.answering[key]
	if t == nil {
		t = make(chan struct{}, maxAnswering)
		s.answering[key] = t
	}
	return t
}

// sendBuffer is how much is gathered before it goes, in bytes.
const sendBuffer = 256 << 10

// sender gathers items of an answer. Each write has a deadline.
type sender struct {
	w   http.ResponseWriter
	rc  *http.ResponseController
	buf []byte
}

func newSender(w http.ResponseWriter) *sender {
	return &sender{w: w, rc: http.NewResponseController(w), buf: make([]byte, 0, sendBuffer+64<<10)}
}

// add appends an item that read appends; one of length 0, not there, if that fails.
func (s *sender) add(read func(dst []byte) ([]byte, error)) error {
	n := len(s.buf)
	b, err := read(append(s.buf, 0, 0, 0, 0))
	if err != nil {
		b = b[:n+4]
	}
	binary.BigEndian.PutUint32(b[n:], uint32(len(b)-n-4))
	s.buf = b
	return err
}

func (s *sender) flush() error {
	if len(s.buf) == 0 {
		return nil
	}
	if err := s.rc.SetWriteDeadline(time.Now().Add(stallTimeout)); err != nil {
		return fmt.Errorf("%w: %w", errBegun, err)
	}
	if _, err := s.w.Write(s.buf); err != nil {
		return fmt.Errorf("%w: %w", errBegun, err)
	}
	s.buf = s.buf[:0]
	return nil
}

func (s *Server) objects(c *peer.Conn, w http.ResponseWriter, r *http.Request) error {
	id, err := s.image(c, r)
	if err != nil {
		return err
	}
	ids, err := idsOf[blockstore.ObjectID](w, r)
	if err != nil {
		return err
	}
	done, err := s.turn(r.Context(), c)
	if err != nil {
		return err
	}
	defer done()
	return s.send(r.Context(), c, id, ids, newSender(w))
}

// turn waits until a peer may have another answer, until done: a buffer for each, not for all that may be asked.
func (s *Server) turn(ctx context.Context, c *peer.Conn) (done func(), err error) {
	turn := s.turns(c.Peer.Key)
	select {
	case turn <- struct{}{}:
		return func() { <-turn }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// send answers with objects of an image.
func (s *Server) send(ctx context.Context, c *peer.Conn, id blockstore.ImageID, ids []blockstore.ObjectID, out *sender) error {
	defer s.renew(c, id)()
	for _, object := range ids {
		err := out.add(func(dst []byte) ([]byte, error) { return s.store.Append(ctx, dst, object) })
		if err != nil && !errors.Is(err, blockstore.ErrNotFound) && !errors.Is(err, blockstore.ErrCorrupt) {
			return fmt.Errorf("%w: %w", errBegun, err)
		}
		if len(out.buf) >= sendBuffer {
			if err := out.flush(); err != nil {
				return err
			}
		}
	}
	return out.flush()
}

func (s *Server) commits(c *peer.Conn, w http.ResponseWriter, r *http.Request) error {
	id, err := s.image(c, r)
	if err != nil {
		return err
	}
	ids, err := idsOf[blockstore.CommitID](w, r)
	if err != nil {
		return err
	}
	out := newSender(w)
	for _, commit := range ids {
		raw, err := s.store.Commit(id, commit)
		if err != nil && !errors.Is(err, blockstore.ErrNotFound) && !errors.Is(err, blockstore.ErrCorrupt) {
			return fmt.Errorf("%w: %w", errBegun, err)
		}
		_ = out.add(func(dst []byte) ([]byte, error) { return append(dst, raw...), nil }) // does not fail
		if len(out.buf) >= sendBuffer {
			if err := out.flush(); err != nil {
				return err
			}
		}
	}
	return out.flush()
}

func (s *Server) recipients(c *peer.Conn, w http.ResponseWriter, r *http.Request) error {
	id, err := s.images.Find(c.Peer, r.PathValue("image"), peer.Host)
	if err != nil {
		return err
	}
	var list []string
	if err := decode(r.Body, maxReport, &list); err != nil {
		return err
	}
	if err := s.pin(c, id); err != nil { // before it is done: what can fail fails now
		return err
	}
	if err := s.images.AddRecipients(r.Context(), c.Peer, id, list); err != nil {
		return err
	}
	return s.tell(c, w, id)
}
