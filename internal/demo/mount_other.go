//go:build !linux

package main

import "errors"

func cannotMount() string { return "mounting EROFS needs Linux" }

func mountErofs(file, dir string) (unmount func() error, err error) {
	return nil, errors.ErrUnsupported
}

func (d *demo) nbdFile() (file string, stop func(), why string, err error) {
	return "", nil, "it needs Linux", nil
}
