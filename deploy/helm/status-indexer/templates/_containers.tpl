{{/* What all containers have: image, connection, resources. Takes the dictionary of _database.tpl. */}}
{{- define "status-indexer.container" -}}
{{- $values := .context.Values -}}
image: {{ include "status-indexer.image" .context }}
imagePullPolicy: {{ $values.image.pullPolicy }}
env:
  {{- include "status-indexer.databaseEnv" . | trim | nindent 2 }}
{{- with $values.envFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with include "status-indexer.databaseMounts" . | trim }}
volumeMounts:
  {{- . | nindent 2 }}
{{- end }}
resources:
  {{- toYaml $values.resources | nindent 2 }}
securityContext:
  {{- $security := $values.securityContext }}
  {{- if .optional }}
  {{- /* The pod of a sidecar has a security context of its own. */}}
  {{- $security = merge (deepCopy $security) (omit $values.podSecurityContext "fsGroup" "fsGroupChangePolicy" "supplementalGroups" "supplementalGroupsPolicy" "sysctls") }}
  {{- end }}
  {{- toYaml $security | nindent 2 }}
{{- end }}

{{/* The container that runs `migrate up`, in an init container or a Job. */}}
{{- define "status-indexer.migration" -}}
{{- $migration := .Values.migration -}}
name: migrate
args:
  - migrate
  - up
  - --wait
  - {{ $migration.wait | int64 | quote }}
  {{- with $migration.grantTo }}
  - --grant-to
  - {{ . | quote }}
  {{- end }}
  {{- with $migration.extraArgs }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{ include "status-indexer.container" (dict "context" . "role" $migration.existingSecret) }}
{{- end }}

{{/* The daemon. `optional`: as a sidecar. */}}
{{- define "status-indexer.daemon" -}}
{{- $values := .context.Values -}}
name: status-indexer
{{- if .optional }}
# Makes the container a sidecar, which starts before the service and stops after it.
restartPolicy: Always
{{- end }}
args:
  - run
  {{- if eq $values.migration.mode "daemon" }}
  - --migrate
  {{- end }}
  - --metrics-listen
  - "[::]:9487"
  - --http-listen
  {{- if and $values.api.enabled (not .optional) }}
  - "[::]:8081"
  {{- with $values.api.pathPrefix }}
  - --path-prefix
  - {{ . | quote }}
  {{- end }}
  {{- else }}
  - "off"
  {{- end }}
  {{- if .optional }}
  # A sidecar that exits makes its pod unready.
  - --login-timeout
  - "0"
  {{- end }}
  {{- with $values.extraArgs }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
ports:
  - name: indexer-metrics
    containerPort: 9487
  {{- if and $values.api.enabled (not .optional) }}
  - name: indexer-api
    containerPort: 8081
  {{- end }}
livenessProbe:
  {{- toYaml $values.livenessProbe | nindent 2 }}
{{- if not .optional }}
readinessProbe:
  {{- toYaml $values.readinessProbe | nindent 2 }}
{{- end }}
{{ include "status-indexer.container" . }}
{{- end }}

{{/*
The sidecar, an item of `initContainers` of the metadata service's pods. An umbrella chart pastes it by
  include "status-indexer.sidecar" (index .Subcharts "status-indexer")
and its volumes by "status-indexer.sidecarVolumes" in the same way.
*/}}
{{- define "status-indexer.sidecar" -}}
- {{ include "status-indexer.daemon" (dict "context" . "role" "" "optional" true) | nindent 2 | trim }}
{{- end }}

{{- define "status-indexer.sidecarVolumes" -}}
{{- $scope := dict "context" . "role" "" "optional" true }}
{{- include "status-indexer.databaseVolumes" $scope | trim }}
{{- with include "status-indexer.otherVolumes" $scope | trim }}
{{ . }}
{{- end }}
{{- end }}
