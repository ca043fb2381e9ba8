package transfer

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/transfer/peer"
)

// news answers as after does, and with the new head comes what it reaches and the one that this
// connection was told of before does not: as much as one request may ask for. It saves who stays
// in step a round trip for each level of the map.
func (s *Server) news(c *peer.Conn, w http.ResponseWriter, r *http.Request) error {
	id, changed, err := s.waitAfter(c, r)
	if err != nil {
		return err
	}
	if !changed {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	if _, err := s.image(c, r); err != nil { // it may not have it any more
		return err
	}
	done, err := s.turn(r.Context(), c)
	if err != nil {
		return err
	}
	defer done()
	difference, err := s.difference(r.Context(), c, id) // before the pin of the older one goes
	if err != nil {
		return err
	}
	d, err := s.pinned(c, id)
	if err != nil {
		return err
	}
	raw, err := encMode.Marshal(d)
	if err != nil {
		return fmt.Errorf("transfer: %w", err)
	}
	out := newSender(w)
	_ = out.add(func(dst []byte) ([]byte, error) { return append(dst, raw...), nil }) // does not fail
	return s.send(r.Context(), c, id, difference, out)
}

// difference lists what the head of an image reaches and the one that a connection was told of before
// does not, from the top down, as far as one request goes and as far as both are here: whoever needs
// the rest asks for it.
func (s *Server) difference(ctx context.Context, c *peer.Conn, id blockstore.ImageID) ([]blockstore.ObjectID, error) {
	old := s.told(c, id)
	_, raw, err := s.store.Head(id)
	if old == nil || err != nil {
		return nil, err
	}
	now, err := blockstore.ParseCommit(raw)
	if err != nil {
		return nil, err
	}
	return s.between(ctx, old, &now.CommitPublic), nil
}

func (s *Server) between(ctx context.Context, old, now *blockstore.CommitPublic) (list []blockstore.ObjectID) {
	left := maxRequestData
	add := func(id blockstore.ObjectID, length uint32) bool {
		if left -= int(length); left < 0 || len(list) == maxRequestIDs {
			return false
		}
		list = append(list, id)
		return true
	}
	had := smallsOf(old)
	for _, ref := range smallsOf(now) {
		if !slices.Contains(had, ref) && !add(ref.ID, ref.Length) {
			return list
		}
	}
	if old.Root == nil || now.Root == nil || old.Root.Level != now.Root.Level {
		return list
	}
	before, after := []blockstore.Ref{rootOf(old.Root)}, []blockstore.Ref{rootOf(now.Root)}
	for level := int(now.Root.Level); ; level-- {
		before, after = without(before, after), without(after, before)
		for _, ref := range after {
			if !add(ref.ID, ref.Length) {
				return list
			}
		}
		size := 0
		for _, ref := range before {
			size += int(ref.Length)
		}
		if level < 0 || size > maxRequestData { // those were segments; or it is another map
			return list
		}
		var err, olderr error
		before, olderr = s.below(ctx, before)
		after, err = s.below(ctx, after)
		if err != nil || olderr != nil { // freed meanwhile
			return list
		}
	}
}

// below lists what nodes name.
func (s *Server) below(ctx context.Context, nodes []blockstore.Ref) (list []blockstore.Ref, err error) {
	for _, n := range nodes {
		err := s.store.Get(ctx, n.ID, func(b []byte) error {
			h, _, _, err := blockstore.ParseRecord(b)
			if err != nil {
				return err
			}
			p, err := blockstore.ParseNodePublic(h.Public)
			list = append(list, p.Children...)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return list, nil
}

// without gives those of list, each once, that are not in other.
func without(list, other []blockstore.Ref) []blockstore.Ref {
	seen := make(map[blockstore.ObjectID]struct{}, len(other)+len(list))
	for _, ref := range other {
		seen[ref.ID] = struct{}{}
	}
	var rest []blockstore.Ref
	for _, ref := range list {
		if _, ok := seen[ref.ID]; !ok {
			seen[ref.ID] = struct{}{}
			rest = append(rest, ref)
		}
	}
	return rest
}

// News returns as [Client.After] does, with the image as it is then, nil if nothing changed; take gets
// objects that are likely to be missing here. Only their number and length were looked at.
func (c *Client) News(ctx context.Context, image blockstore.ImageID, have blockstore.CommitID, take func(b []byte) error) (*Description, error) {
	ctx, end := context.WithTimeout(ctx, streamTimeout)
	defer end()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	resp, err := c.do(ctx, http.MethodGet, "/v1/images/"+image.String()+"/news/"+have.String(), nil, nil, http.StatusOK, http.StatusNotModified)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNotModified {
		return nil, nil
	}
	fail := func(err error) (*Description, error) { return nil, fmt.Errorf("peer %s: %w", c.Conn.Peer.Name, err) }
	r := bufio.NewReaderSize(impatient(resp.Body, func() { cancel(errStalled) }), 64<<10)
	n, err := readLength(r)
	if err != nil {
		return fail(err)
	}
	d := new(Description)
	if err := decode(io.LimitReader(r, int64(n)), maxDescription, d); err != nil {
		return fail(fmt.Errorf("description: %w", err))
	}
	for count, left := 0, maxRequestData; ; count++ {
		if _, err := r.Peek(1); errors.Is(err, io.EOF) {
			return d, checkVersion(d.Version)
		}
		n, err := readLength(r)
		if err != nil {
			return fail(err)
		}
		if left -= n; left < 0 || count == maxRequestIDs {
			return fail(fmt.Errorf("more news than one answer holds: %w", ErrProtocol))
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(r, b); err != nil {
			return fail(cut(err))
		}
		if n == 0 { // gone meanwhile
			continue
		}
		if err := take(b); err != nil {
			return nil, err
		}
	}
}

// News waits for another head of an image than have, as [Client.News] does, and stores what comes with
// it: nothing names that yet, and [Receiver.Receive], which checks all, need not ask for it.
func (r *Receiver) News(ctx context.Context, c *Client, id blockstore.ImageID, have blockstore.CommitID) (*Description, error) {
	put := blockstore.NewBatch(ctx, r.Store)
	defer put.Wait()
	d, err := c.News(ctx, id, have, func(b []byte) error {
		if err := formOf(b); err != nil {
			return fmt.Errorf("%w: %w", ErrProtocol, err)
		}
		if r.Account != nil {
			if err := r.Account(len(b)); err != nil {
				return err
			}
		}
		return put.Add(blockstore.Object{ID: blockstore.IDOf(b), Bytes: b})
	})
	if err == nil {
		err = put.Flush()
	}
	if err != nil {
		return nil, err
	}
	return d, nil
}

// formOf fails unless bytes have the form of a segment or of a record.
func formOf(b []byte) error {
	if _, _, _, _, err := blockstore.ParseSegmentHeader(b); err == nil {
		return nil
	}
	_, _, _, err := blockstore.ParseRecord(b)
	return err
}
