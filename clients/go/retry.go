package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// retry: a server that dies costs time. There is no code for that here: the service config retries, and the request id
// makes it safe.
func (s *scenario) retry(ctx context.Context) (string, error) {
	pid, err := userServicePID()
	if err != nil {
		return "", err
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return "", fmt.Errorf("can't kill user-service, process %d: %w", pid, err)
	}
	began := time.Now()
	created, err := s.users.CreateUser(ctx, newUser())
	if err != nil {
		return "", err
	}
	took := time.Since(began).Round(time.Millisecond)
	return fmt.Sprintf("user %s, %v after the kill", created.GetUser().GetUserId(), took), nil
}

// userServicePID prefers the file, which tells of restarts; the environment is as old as this process.
func userServicePID() (int, error) {
	value := os.Getenv("USER_SERVICE_PID")
	if text, err := os.ReadFile(os.Getenv("ENDPOINTS_FILE")); err == nil {
		for line := range strings.Lines(string(text)) {
			if pid, found := strings.CutPrefix(line, "USER_SERVICE_PID="); found {
				value = strings.TrimSpace(pid)
			}
		}
	}
	if value == "" {
		return 0, fmt.Errorf("%w: USER_SERVICE_PID is not set", errSkipped)
	}
	pid, err := strconv.Atoi(value)
	if err != nil || pid < 2 {
		return 0, fmt.Errorf("USER_SERVICE_PID is %q", value)
	}
	return pid, nil
}
