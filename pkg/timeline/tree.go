package timeline

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"tidemark/pkg/wal"
)

// Node is one timeline of a tree.
type Node struct {
	Timeline ID      `json:"timeline"`
	Begin    wal.LSN `json:"begin"`            // where it left its parent; 0 for a root
	Reason   string  `json:"reason,omitempty"` // why it did
	Children []*Node `json:"children,omitempty"`

	parent *Node
}

// Parent returns the timeline that this one left, or nil for a root.
func (n *Node) Parent() *Node { return n.parent }

// Tree is the family of all the timelines that a set of histories tells of.
type Tree struct {
	Roots []*Node `json:"roots"`
}

// Conflict is returned when two histories disagree about one timeline: two
// servers were promoted to the same number at different points.
type Conflict struct {
	Timeline ID
	A, B     Entry // where it began according to each; Entry.Timeline is the parent
}

func (e *Conflict) Error() string {
	return fmt.Sprintf("two different timelines %d exist: one left timeline %d at %s, the other timeline %d at %s",
		e.Timeline, e.A.Timeline, e.A.Switch, e.B.Timeline, e.B.Switch)
}

// NewTree joins histories into a tree. The same timeline may be told of by
// many of them; a *Conflict is returned when they do not say the same.
func NewTree(histories ...*History) (*Tree, error) {
	origin := map[ID]Entry{} // the entry that ends the parent
	known := map[ID]bool{}
	for _, h := range histories {
		ids := make([]ID, 0, len(h.Entries)+1)
		for _, e := range h.Entries {
			ids = append(ids, e.Timeline)
		}
		ids = append(ids, h.Timeline)
		known[ids[0]] = true
		for i, e := range h.Entries {
			child := ids[i+1]
			known[child] = true
			if old, ok := origin[child]; ok && (old.Timeline != e.Timeline || old.Switch != e.Switch) {
				return nil, &Conflict{child, old, e}
			}
			origin[child] = e
		}
	}
	return build(known, origin), nil
}

func build(known map[ID]bool, origin map[ID]Entry) *Tree {
	nodes := map[ID]*Node{}
	for id := range known {
		nodes[id] = &Node{Timeline: id}
	}
	t := &Tree{}
	for id, n := range nodes {
		e, ok := origin[id]
		if !ok {
			t.Roots = append(t.Roots, n)
			continue
		}
		n.Begin, n.Reason, n.parent = e.Switch, e.Reason, nodes[e.Timeline]
		n.parent.Children = append(n.parent.Children, n)
	}
	order := func(a, b *Node) int {
		return cmp.Or(cmp.Compare(a.Begin, b.Begin), cmp.Compare(a.Timeline, b.Timeline))
	}
	slices.SortFunc(t.Roots, order)
	for _, n := range nodes {
		slices.SortFunc(n.Children, order)
	}
	return t
}

// Find returns the node of a timeline, or nil.
func (t *Tree) Find(id ID) *Node {
	for _, r := range t.Rows() {
		if r.Node.Timeline == id {
			return r.Node
		}
	}
	return nil
}

// Latest returns the timeline with the greatest number, which is what a
// server calls the latest, or 0 for an empty tree.
func (t *Tree) Latest() ID {
	var id ID
	for _, r := range t.Rows() {
		id = max(id, r.Node.Timeline)
	}
	return id
}

// Row is one line of a drawing of the tree.
type Row struct {
	Node  *Node
	Depth int
	Last  []bool // for each level from 1 to Depth: is it the last child of its parent?
}

// Rows returns the tree's nodes in the order in which they are drawn, parents
// before children.
func (t *Tree) Rows() []Row {
	var rows []Row
	var visit func(n *Node, last []bool)
	visit = func(n *Node, last []bool) {
		rows = append(rows, Row{Node: n, Depth: len(last), Last: last})
		for i, c := range n.Children {
			visit(c, append(slices.Clip(last), i == len(n.Children)-1))
		}
	}
	for _, r := range t.Roots {
		visit(r, nil)
	}
	return rows
}

// Prefix returns the branches to the left of the row's text, for example
// "│  └─ ".
func (r Row) Prefix() string {
	var b strings.Builder
	for i, last := range r.Last {
		inner := i < len(r.Last)-1
		switch {
		case inner && last:
			b.WriteString("   ")
		case inner:
			b.WriteString("│  ")
		case last:
			b.WriteString("└─ ")
		default:
			b.WriteString("├─ ")
		}
	}
	return b.String()
}
