package peakmem

import (
	"os/exec"
	"runtime"
	"syscall"
)

// dieWithParent keeps a command from outliving the process in between.
func dieWithParent(cmd *exec.Cmd) {
	// The signal comes when the thread that started the command ends.
	runtime.LockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
