package rootfs

import (
	"fmt"
	"strings"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

const (
	maxName     = 255  // bytes; NAME_MAX
	maxTarget   = 4095 // bytes of a symlink's target; PATH_MAX less its NUL
	maxSymlinks = 255  // followed for one path
	// maxDepth bounds the components walked for one path, and by that how deep
	// the tree can get.
	maxDepth = 4096
)

// split cleans an archive's path lexically: absolute is relative to the root,
// "." and empty components vanish, ".." climbs no higher than the root.
func split(path string) (dir []string, base string) {
	for c := range strings.SplitSeq(path, "/") {
		switch c {
		case "", ".":
		case "..":
			if len(dir) > 0 {
				dir = dir[:len(dir)-1]
			}
		default:
			dir = append(dir, c)
		}
	}
	if n := len(dir); n > 0 {
		return dir[:n-1], dir[n-1]
	}
	return nil, ""
}

// parentOf resolves the directory of path, and cleans its last component
// (which is "" for the root itself). Symbolic links on the way are followed
// inside the root; where they dangle, or where a directory was not listed,
// directories are made if create is set. Without create a missing directory
// gives nil.
func (t *Tree) parentOf(path string, create bool) (*Inode, string, error) {
	// Most archives are clean and list a directory's files together.
	if i := strings.LastIndexByte(path, '/'); i > 0 && t.lastIn != nil && path[:i] == t.lastDir {
		if base := path[i+1:]; base != "" && base != "." && base != ".." {
			return t.lastIn, base, nil
		}
	}
	dir, base := split(path)
	w := walk{tree: t, create: create}
	in, err := w.resolve(dir)
	if err != nil {
		return nil, "", err
	}
	if in != nil && create {
		if i := strings.LastIndexByte(path, '/'); i > 0 {
			t.lastDir, t.lastIn = path[:i], in
			if b := path[i+1:]; b == "" || b == "." || b == ".." {
				t.lastIn = nil
			}
		}
	}
	return in, base, nil
}

// forget drops what parentOf remembers: the tree's shape has changed.
func (t *Tree) forget() { t.lastIn = nil }

// A walk resolves one path.
type walk struct {
	tree   *Tree
	create bool
	links  int
	steps  int
}

func (w *walk) resolve(path []string) (*Inode, error) {
	// The directories from the root down, for "..": a symlink's target may
	// climb.
	stack := []*Inode{w.tree.root}
	todo := path
	for len(todo) > 0 {
		name := todo[0]
		todo = todo[1:]
		if w.steps++; w.steps > maxDepth {
			return nil, errTooDeep
		}
		top := stack[len(stack)-1]
		switch name {
		case "", ".":
			continue
		case "..":
			if len(stack) > 1 {
				stack = stack[:len(stack)-1]
			}
			continue
		}
		d := top.child(name)
		switch {
		case d == nil && !w.create:
			return nil, nil
		case d == nil:
			in, err := w.tree.mkdir(top, name)
			if err != nil {
				return nil, err
			}
			stack = append(stack, in)
		case d.inode.IsDir():
			stack = append(stack, d.inode)
		case d.inode.IsSymlink():
			if w.links++; w.links > maxSymlinks {
				return nil, fmt.Errorf("more than %d symbolic links: %w", maxSymlinks, fault.ErrUnsupported)
			}
			target := d.inode.Target()
			if strings.HasPrefix(target, "/") {
				stack = stack[:1]
			}
			todo = append(strings.Split(target, "/"), todo...)
			if len(todo) > maxDepth-w.steps {
				return nil, errTooDeep // before links to links make it huge
			}
		case !w.create:
			return nil, nil
		case d.inode.isWhiteout():
			in, err := w.tree.replaceWhiteout(top, name)
			if err != nil {
				return nil, err
			}
			stack = append(stack, in)
		default:
			return nil, fmt.Errorf("%q is not a directory: %w", name, fault.ErrUnsupported)
		}
	}
	top := stack[len(stack)-1]
	if w.create {
		// Only now: a directory on the way to a symbolic link that led out of
		// it has got nothing.
		w.tree.touch(top)
	}
	return top, nil
}

// mkdir makes a directory that the archive did not list.
func (t *Tree) mkdir(in *Inode, name string) (*Inode, error) {
	i := t.impliedDir()
	return i, t.link(in, name, i)
}

func nameTooLong(name string) error {
	return fmt.Errorf("name of %d bytes (at most %d): %w", len(name), maxName, fault.ErrUnsupported)
}

var errTooDeep = fmt.Errorf("path with more than %d components: %w", maxDepth, fault.ErrUnsupported)
