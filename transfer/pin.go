package transfer

import (
	"fmt"
	"net/http"
	"time"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/transfer/peer"
)

// A pin keeps what the head of an image reached when it was described, for the peer that
// asked on that connection: until it says that it is done, says nothing for pinTimeout,
// or goes away, and for pinMost at most. Whoever comes later finds objects absent and asks for the head anew.
const (
	pinTimeout = 2 * time.Minute
	pinMost    = 24 * time.Hour
)

type pinKey struct {
	conn  *peer.Conn
	image blockstore.ImageID
}

type pin struct {
	release func()
	began   time.Time
	busy    int         // requests that are being answered
	timer   *time.Timer // drops it
	told    []byte      // the head that was described
}

// pin renews the pin of an image, so that it keeps the head of now.
func (s *Server) pin(c *peer.Conn, id blockstore.ImageID) error {
	release, err := s.images.Guard(id)
	if err != nil {
		return err
	}
	key := pinKey{c, id}
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-c.Done(): // forget has been here
		release()
		return nil
	default:
	}
	p := &pin{release: release, began: time.Now()}
	if old := s.pins[key]; old != nil {
		p.began = old.began // or pinMost would be no bound
		old.dropLocked(s, key)
	}
	if time.Since(p.began) > pinMost {
		release()
		return fmt.Errorf("%w: connect anew", ErrRefused)
	}
	p.timer = time.AfterFunc(pinTimeout, func() { s.expire(key, p) })
	s.pins[key] = p
	return nil
}

// dropLocked forgets a pin; s.mu is held, and Guard's release never waits for it.
func (p *pin) dropLocked(s *Server, key pinKey) {
	p.timer.Stop()
	p.release()
	delete(s.pins, key)
}

// told gives the head that was described last on a connection; nil: none is known.
func (s *Server) told(c *peer.Conn, id blockstore.ImageID) *blockstore.CommitPublic {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.pins[pinKey{c, id}]
	if p == nil {
		return nil
	}
	head, err := blockstore.ParseCommit(p.told)
	if err != nil { // it was not told
		return nil
	}
	return &head.CommitPublic
}

func (s *Server) expire(key pinKey, p *pin) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pins[key] == p && p.busy == 0 {
		p.dropLocked(s, key)
	}
}

// renew keeps a pin for as long as a request is answered, and its time after that.
func (s *Server) renew(c *peer.Conn, id blockstore.ImageID) (done func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.pins[pinKey{c, id}]
	if p == nil {
		return func() {}
	}
	p.busy++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		p.busy--
		p.timer.Reset(max(0, min(pinTimeout, pinMost-time.Since(p.began))))
	}
}

func (s *Server) unpin(c *peer.Conn, w http.ResponseWriter, r *http.Request) error {
	id, err := s.image(c, r)
	if err != nil {
		return err
	}
	key := pinKey{c, id}
	s.mu.Lock()
	if p := s.pins[key]; p != nil {
		p.dropLocked(s, key)
	}
	s.mu.Unlock()
	w.WriteHeader(http.StatusNoContent)
	return nil
}
