package vm

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
)

// PutProgram puts a program of the host's into the guest, under this absolute
// name, and the shared libraries that it names under their own. What it opens
// later, it has to be given by Put.
func (g *Guest) PutProgram(name, from string) error {
	from, err := filepath.EvalSymlinks(from)
	if err != nil {
		return err
	}
	loader, err := interpreter(from)
	if err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	g.Put(name, from)
	if loader == "" {
		return nil
	}
	// The loader tells what it would load: "libc.so.6 => /lib/libc.so.6 (0x...)".
	list, err := exec.Command(loader, "--list", from).Output()
	if err != nil {
		return fmt.Errorf("%s --list %s: %w", loader, from, err)
	}
	for line := range strings.Lines(string(list)) {
		_, lib, found := strings.Cut(line, "=> ")
		if !found {
			continue // the loader itself, or what the kernel provides
		}
		lib, _, found = strings.Cut(strings.TrimSpace(lib), " (0x")
		if !found {
			return fmt.Errorf("%s: %s", from, strings.TrimSpace(line)) // "not found"
		}
		g.Put(lib, lib)
	}
	g.Put(loader, loader)
	return nil
}

// interpreter is the loader that an executable asks for, "" for a static one and
// for a script.
func interpreter(name string) (string, error) {
	f, err := elf.Open(name)
	if _, ok := errors.AsType[*elf.FormatError](err); ok {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			b, err := io.ReadAll(io.LimitReader(p.Open(), 4096))
			return string(bytes.TrimRight(b, "\x00")), err
		}
	}
	return "", nil
}
