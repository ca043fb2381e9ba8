package transfer

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/sealdisk/sealdisk/transfer/peer"
)

// offering is a push as its sender sees it.
type offering struct {
	offer  Offer
	report func(Report)
	ended  chan error
}

// Push has a peer pull what o offers over conn, a connection that this host dialled for
// it ([peer.Reverse]), and returns when it is there; or, with o.Follow, when ctx ends or
// the connection does. Progress gets the peer's reports and may be nil.
func (s *Server) Push(ctx context.Context, conn *peer.Conn, o Offer, progress func(Report)) error {
	if progress == nil {
		progress = func(Report) {}
	}
	of := &offering{offer: o, report: progress, ended: make(chan error, 1)}
	s.mu.Lock()
	s.offers[conn] = of
	s.mu.Unlock()
	if err := s.Handle(conn); err != nil {
		s.mu.Lock()
		delete(s.offers, conn)
		s.mu.Unlock()
		return err
	}
	defer conn.Close()
	select {
	case err := <-of.ended:
		return err
	case <-conn.Done():
		select {
		case err := <-of.ended:
			return err
		default:
		}
		return fmt.Errorf("peer %s: %w before it was done", conn.Peer.Name, ErrConnection)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *Server) offering(c *peer.Conn) (*offering, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if of := s.offers[c]; of != nil {
		return of, nil
	}
	return nil, fmt.Errorf("nothing is offered: %w", ErrRefused)
}

func (s *Server) offer(c *peer.Conn, w http.ResponseWriter, _ *http.Request) error {
	of, err := s.offering(c)
	if err != nil {
		return err
	}
	b, err := encMode.Marshal(of.offer)
	if err != nil {
		return fmt.Errorf("transfer: %w", err)
	}
	_, err = w.Write(b)
	return err
}

func (s *Server) report(c *peer.Conn, w http.ResponseWriter, r *http.Request) error {
	of, err := s.offering(c)
	if err != nil {
		return err
	}
	var rep Report
	if err := decode(r.Body, maxReport, &rep); err != nil {
		return err
	}
	rep.Message = printable([]byte(rep.Message))
	w.WriteHeader(http.StatusNoContent)
	switch rep.State {
	case Running, At:
		of.report(rep)
		return nil
	case Done:
		of.report(rep)
		err = nil
	case Failed:
		err = fmt.Errorf("peer %s: %w: %s", c.Peer.Name, ErrRefused, rep.Message)
	default:
		err = fmt.Errorf("peer %s: report %q: %w", c.Peer.Name, rep.State, ErrProtocol)
	}
	select {
	case of.ended <- errors.Join(err):
	default: // it has said so before
	}
	return nil
}
